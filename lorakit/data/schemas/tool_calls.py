"""Conversations in which the assistant calls tools, as OpenAI, ShareGPT, Hermes and xLAM write them.

{"messages": [{"from": "user", "value": "Go"}, {"from": "tool_call", "value": {"name": "f"}}], "tools": [{"name": "f"}]}

ShareGPT's turns are from `function_call` and `observation`; Hermes writes <tool_call> and <tool_response> into the
words, and the tools into the system turn. `tools` may be JSON in a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data.example import Example
from lorakit.data.schemas import SYSTEM, column, marks, messages, nested, text_of

GIVES = "messages"
RICHNESS = 65
OFFERS = ("tools", "functions")
REQUIRED = (("messages", "conversations", "conversation"),)
OPTIONAL = messages.OPTIONAL
CALLS = ("function_call", "tool_call")  # roles of turns that are calls
RESULTS = {*messages.TOOLS, "ipython"} - {*CALLS}
CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
RESULT = re.compile(r"</?tool_response>")
OFFER = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)


def fits(rows: Sequence[Example]) -> bool:
    """Whether any row offers tools or calls one."""
    return any(_of_tools(row.fields) for row in rows)


def _of_tools(fields: Mapping[str, Any]) -> bool:
    turns = nested(fields.get(next((n for n in REQUIRED[0] if n in fields), "")))
    offered = any(fields.get(n) not in (None, [], {}, "", "[]") for n in OFFERS)
    return isinstance(turns, list) and (
        offered or any(_role(t) in messages.TOOLS or _calls_inside(t) for t in turns)
    )


def convert(fields: dict) -> dict:
    """`messages`, in which an assistant's turn may have `tool_calls` and a `tool` turn gives a result, and `tools`."""
    name = column(fields, REQUIRED[0])
    return conversation(fields, name, nested(fields[name]))


def conversation(fields: Mapping[str, Any], name: str, turns: Any) -> dict:
    """The same of given turns; `name`: the column that they are from."""
    if not isinstance(turns, list) or not turns:
        kind = "empty" if turns == [] else type(turns).__name__
        raise BadRow(f"{name!r} is {kind}, expected a list of turns")
    tools = _tools(fields)
    first = turns[0] if _role(turns[0]) == "system" else {}
    if listed := OFFER.search(
        str(first.get("content", first.get("value")))
    ):  # Hermes: the template writes them
        tools, turns = tools or _definitions(listed[1], "<tools>"), turns[1:]
    names = {tool["function"]["name"] for tool in tools}
    kept: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, 1):
        kept.append(_turn(turn, number, names, sum(len(t.get("tool_calls", ())) for t in kept)))
    _check_order([turn["role"] for turn in kept])
    _answer(kept)
    kept = marks.marked(fields, kept)
    said = text_of(fields, SYSTEM, empty=True)
    if kept[0]["role"] != "system":
        kept.insert(0, {"role": "system", "content": said})
    kept = [turn for turn in kept if turn["content"].strip() or turn["role"] != "system"]
    found = {"messages": kept, **({"tools": tools} if tools else {})}
    try:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"tools or calls hold what JSON cannot: {error}") from None
    return found


def _role(turn: Any) -> str:
    said = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return said.strip().lower() if isinstance(said, str) else ""


def _calls_inside(turn: Any) -> bool:
    words = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
    return isinstance(turn, dict) and bool(
        turn.get("tool_calls")
        or turn.get("function_call")
        or (isinstance(words, str) and CALL.search(words))
    )


def parsed(value: Any, what: str) -> Any:
    """A list or an object, given as it is or as JSON. Raises `BadRow` for a text that is none."""
    found = nested(value)
    if isinstance(found, (list, dict)):
        return found
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"{what} is no JSON: {error} in {str(value)[:60]!r}") from None


def _tools(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = next((n for n in OFFERS if fields.get(n) not in (None, [], {}, "", "[]")), None)
    return _definitions(fields[name], repr(name)) if name else []


def _definitions(value: Any, what: str) -> list[dict[str, Any]]:
    """Tools as OpenAI defines them. xLAM lists parameters without the schema around them."""
    found = parsed(value, what)
    out = []
    for number, tool in enumerate(found if isinstance(found, list) else [found], 1):
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise BadRow(f"tool {number} of {what} has no 'name'")
        given = inner.get("parameters") or {}
        if not isinstance(given, dict):
            raise BadRow(f"'parameters' of the tool {inner['name']!r} is {type(given).__name__}")
        if given.get("type") != "object" or not isinstance(given.get("properties", {}), dict):
            given = {"type": "object", "properties": given}
        out.append({"type": "function", "function": {**inner, "parameters": given}})
    return out


def _turn(turn: Any, number: int, names: set[str], before: int) -> dict[str, Any]:
    """One turn; `before`: how many calls the turns before it make."""
    role = _role(turn)
    value = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
    if role in RESULTS:
        words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        kept = {k: turn[k] for k in ("name", "tool_call_id") if isinstance(turn.get(k), str)}
        return {"role": "tool", "content": RESULT.sub("", words).strip(), **kept}
    if not isinstance(turn, dict):
        return messages.turn(turn, number)
    where, inline = f"turn {number}", CALL.findall(value) if isinstance(value, str) else []
    if role in CALLS:
        found = parsed(value, where)
        calls, role, value = found if isinstance(found, list) else [found], "assistant", None
    elif calls := _given(turn):
        pass
    elif inline and messages.ROLES.get(role) == "assistant":
        calls, value = (
            [parsed(text.strip(), where) for text in inline],
            CALL.sub("", str(value)).strip(),
        )
    else:
        return messages.turn(turn, number)
    if messages.ROLES.get(role) != "assistant":
        raise BadRow(
            f"{where} calls a tool and is the {role or 'nobody'}'s; only the assistant calls"
        )
    rest = {
        k: v for k, v in turn.items() if k not in ("tool_calls", "function_call", "value", "from")
    }
    blank = value in (None, "", [])
    made = messages.turn({**rest, "role": role, "content": "." if blank else value}, number)
    calls = [_call(call, where, names, before + i) for i, call in enumerate(calls)]
    return {**made, "content": "" if blank else made["content"], "tool_calls": calls}


def _given(turn: dict) -> list[Any]:
    """OpenAI's calls of a turn, the older single one included."""
    if turn.get("function_call"):
        return [turn["function_call"]]
    found = nested(turn.get("tool_calls") or [])
    return found if isinstance(found, list) else [found]


def _call(call: Any, where: str, names: set[str], number: int) -> dict[str, Any]:
    """{"id", "type", "function": {"name", "arguments" (a dict)}}"""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise BadRow(f"{where} has a call without 'name'")
    name = inner["name"]
    if name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise BadRow(f"{where} calls {name!r}, which 'tools' does not define (it defines {known})")
    given = inner.get("arguments", inner.get("parameters"))
    given = {} if given in (None, "") else parsed(given, f"{where}: the arguments of {name!r}")
    if not isinstance(given, dict):
        raise BadRow(f"{where}: the arguments of {name!r} are no object but {type(given).__name__}")
    key = call.get("id") if isinstance(call.get("id"), str) else f"call{number:05d}"
    return {"id": key, "type": "function", "function": {"name": name, "arguments": given}}


def _check_order(roles: list[str]) -> None:
    """A user's turn, answers and calls, each call's results before the next turn, an answer or a call last."""
    if "tool" not in roles:
        return messages.check_order(roles)
    follows = {
        "": ("system", "user"), "system": ("user",), "user": ("assistant",),
        "assistant": ("user", "tool"), "tool": ("tool", "assistant"),
    }  # fmt: skip
    for place, (last, role) in enumerate(zip(["", *roles], roles, strict=False), 1):
        if role not in follows[last]:
            wanted = " or ".join(follows[last])
            raise BadRow(f"roles out of order: turn {place} is {role}, expected {wanted}")
    if not roles or roles[-1] != "assistant":
        raise BadRow("the last turn is not the assistant's: there is no answer to it")


def _answer(turns: list[dict[str, Any]]) -> None:
    """Gives each result the name and the id of its call. Raises `BadRow` for results without a call."""
    open_calls: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, 1):
        if turn["role"] != "tool":
            open_calls = list(turn.get("tool_calls", ()))
            continue
        mine = next((c for c in open_calls if c["id"] == turn.get("tool_call_id")), None)
        mine = mine or next(iter(open_calls), None)
        if mine is None:
            raise BadRow(f"turn {number} is a tool's result, and no call before it waits for one")
        open_calls.remove(mine)
        turn |= {"name": mine["function"]["name"], "tool_call_id": mine["id"]}
