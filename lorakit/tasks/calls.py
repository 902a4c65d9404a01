"""Tool calls in generated words, in each form that a chat template has models write them.

Scores and the server read them here. Special tokens may have been left out of the words, as both decode them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

Tools = Sequence[Mapping[str, Any]]  # as OpenAI defines them


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Any  # an object; where its form cannot be read, its words
    start: int  # the place in the words at which it begins


# Qwen 3.5, Nemotron 3: <function=rain> <parameter=at> Rio </parameter> </function>
FUNCTION = re.compile(r"(?:<tool_call>\s*)?<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
# GLM 4.5: <tool_call>rain <arg_key>at</arg_key> <arg_value>Rio</arg_value> </tool_call>
KEYED = re.compile(r"<tool_call>\s*([\w.\-]+)\s*((?:<arg_key>.*?)?)</tool_call>", re.DOTALL)
PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
# Gemma 4: call:rain{at:<|"|>Rio<|"|>}
BRACED = re.compile(
    r"(?:<\|tool_call>)?call:([\w.\-]+)(\{.*?\})(?=<tool_call\|>|call:|\s*$)", re.DOTALL
)
QUOTED = re.compile(r'<\|"\|>(.*?)<\|"\|>|([{,])\s*([\w$\-]+)\s*:', re.DOTALL)
# LFM 2, Llama 4: [rain(at='Rio')]; Llama 3.1's own tools: rain.call(at="Rio")
LISTED = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
BUILT_IN = re.compile(r"[A-Za-z_]\w*\.call\(")
MOST = 50  # closing brackets at which such a call is tried to end
# A name before the object of its arguments: gpt-oss, Mistral, DeepSeek
HARMONY = re.compile(r"(?:\bto=)?functions\.([\w\-]+?)(?:<\|channel\|>)?(?:commentary|\W)")
MISTRAL = re.compile(r"(?:\[TOOL_CALLS\])?([A-Za-z_][\w.\-]*)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*$")
NAMED = re.compile(r"([A-Za-z_][\w.\-]*)(?:\s*```json)?\W*$")
BEGINS = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<\|tool_call_start\|>|<function=|<\|tool_call>")
MARKS = re.compile(  # what stands before a call and is no word of the answer
    r"(?:\s|<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_call_start\|>|<\|tool_call>|<\|channel\|>|\[)+$"
)


def found(words: str, tools: Tools = ()) -> list[Call] | None:
    """The calls in their order. None: something begins like a call and is none.

    `tools` say which arguments are text, where the form itself does not.
    """
    try:
        for form in (_functions, _keyed, _braced, _python):
            if calls := list(form(words, tools)):
                return calls
        calls = list(_objects(words))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return None if not calls and BEGINS.search(words) else calls


def said_before(words: str, calls: Sequence[Call]) -> str:
    """What an answer says before its first call."""
    return MARKS.sub("", words[: calls[0].start]).strip() if calls else words


def comparable(words: str) -> list[tuple[str, str]] | None:
    """(name, arguments as canonical JSON) of each call, in an order that does not depend on the answer's."""
    calls = found(words)
    if calls is None:
        return None
    return sorted((c.name, json.dumps(c.arguments, sort_keys=True)) for c in calls)


def _functions(words: str, tools: Tools) -> Iterator[Call]:
    yield from _marked(words, FUNCTION, "<function=", PARAMETER, tools)


def _keyed(words: str, tools: Tools) -> Iterator[Call]:
    yield from _marked(words, KEYED, "<tool_call>", PAIR, tools)


def _marked(
    words: str, call: re.Pattern[str], mark: str, pair: re.Pattern[str], tools: Tools
) -> Iterator[Call]:
    """Values are words; what is no text by its tool's definition, or has none, is read as JSON where it is."""
    matches = [*call.finditer(words)]
    if matches and words.count(mark) != len(matches):
        raise ValueError("a call that does not end")
    for match in matches:
        kinds, pairs = _kinds(tools, match[1]), pair.findall(match[2])
        given = {k.strip(): v if kinds.get(k.strip()) == "string" else _value(v) for k, v in pairs}
        yield Call(match[1], given, match.start())


def _kinds(tools: Tools, name: str) -> dict[str, Any]:
    """argument -> its type in the definition of this tool."""
    for tool in tools:
        inner = tool.get("function", tool)
        if inner.get("name") == name:
            properties = (inner.get("parameters") or {}).get("properties") or {}
            return {
                key: one.get("type") for key, one in properties.items() if isinstance(one, dict)
            }
    return {}


def _value(words: str) -> Any:
    try:
        return json.loads(words)
    except (ValueError, RecursionError):
        return words


def _braced(words: str, tools: Tools) -> Iterator[Call]:
    def as_json(match: re.Match[str]) -> str:
        return json.dumps(match[1]) if match[3] is None else f'{match[2]}"{match[3]}":'

    for match in BRACED.finditer(words):
        given = _value(QUOTED.sub(as_json, match[2]))
        yield Call(match[1], match[2] if isinstance(given, str) else given, match.start())


def _python(words: str, tools: Tools) -> Iterator[Call]:
    starts = LISTED if LISTED.search(words) else BUILT_IN
    for match in starts.finditer(words):
        close = re.compile(r"\]" if starts is LISTED else r"\)")
        for end in islice(close.finditer(words, match.end()), MOST):
            try:
                parsed = ast.parse(words[match.start() : end.end()], mode="eval").body
            except SyntaxError:
                continue
            for each in parsed.elts if isinstance(parsed, ast.List) else [parsed]:
                if (call := _call_of(each, match.start())) is not None:
                    yield call
            break


def _call_of(tree: ast.expr, start: int) -> Call | None:
    if not isinstance(tree, ast.Call) or tree.args or any(k.arg is None for k in tree.keywords):
        return None
    name = ast.unparse(tree.func).removesuffix(".call")
    given = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    return Call(name, json.loads(json.dumps(given)), start)


def _objects(words: str) -> Iterator[Call]:
    """Objects with a name and arguments, or with a name before them. Raises `ValueError` for what is no JSON."""
    decoder, place = json.JSONDecoder(), 0
    while (start := words.find("{", place)) >= 0:
        before, (value, place) = place, decoder.raw_decode(words, start)
        inner = value.get("function", value)
        inner = inner if isinstance(inner, dict) else {}
        name = next((inner[k] for k in ("name", "tool_name") if k in inner), None)
        keys = [k for k in ("arguments", "parameters") if k in inner]
        if isinstance(name, str) and keys:
            given = inner[keys[0]]
            yield Call(name, _value(given) if isinstance(given, str) else given, start)
        elif match := _name_before(words[before:start]):
            yield Call(match[1], value, before + match.start())


def _name_before(words: str) -> re.Match[str] | None:
    return (
        next(reversed([*HARMONY.finditer(words)]), None)
        or MISTRAL.search(words)
        or NAMED.search(words)
    )
