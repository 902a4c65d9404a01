"""An emulation of Ollama's renderer of chat templates, for the part of Go's text/template that templates use.

After `template/template.go` of Ollama (`collate`, `Execute`) and https://pkg.go.dev/text/template: text, actions with
trim markers, `if`/`else if`/`else`, `range` with and without variables, `with`, comparisons, `and`, `or`, `not`, `len`,
`index`, `slice`, `printf`-free literals, `$` and fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.common.errors import LorakitError

ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|\(|\)|:=|=|,|[^\s(),=:]+')
Message = dict[str, str]


@dataclass
class Node:
    """Text, an action, or a block with its bodies."""

    kind: str  # text, action, if, range, with
    text: str = ""
    body: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


def render(template: str, messages: Sequence[Message]) -> str:
    """A conversation that ends with a question, as Ollama writes it for the model.

    Raises `LorakitError` for a template that is none, or uses what this emulation has not.
    """
    nodes = parse(template)
    system, merged = collate(messages)
    if "Messages" in _fields(nodes):
        values = {
            "System": system,
            "Messages": [{"Role": m["role"], "Content": m["content"]} for m in merged],
            "Response": "",
        }
        return _Renderer(values).write(nodes)
    if "Response" not in _fields(nodes):
        nodes.append(Node("action", ".Response"))
    return _legacy(nodes, merged)


def collate(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """(system texts joined, messages with neighbours of one role joined)."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1]["content"] += "\n\n" + message["content"]
        else:
            merged.append(dict(message))
    system = [m["content"] for m in messages if m["role"] == "system"]
    return "\n\n".join(system), merged


def _legacy(nodes: list[Node], messages: Sequence[Message]) -> str:
    """A template over `.System`, `.Prompt` and `.Response` is written once for each question with its answer."""
    out = ""
    turn = {"System": "", "Prompt": "", "Response": ""}

    def flush() -> str:
        text = _Renderer(dict(turn)).write(nodes)
        turn.update(System="", Prompt="", Response="")
        return text

    for message in messages:
        if message["role"] == "system":
            out += flush() if turn["Prompt"] or turn["Response"] else ""
            turn["System"] = message["content"]
        elif message["role"] == "user":
            out += flush() if turn["Response"] else ""
            turn["Prompt"] = message["content"]
        elif message["role"] == "assistant":
            turn["Response"] = message["content"]
    cut = _Cut()
    last = cut.before_response(nodes)
    return out + _Renderer({**turn, "Response": ""}).write(last)


class _Cut:
    """Drops everything behind the first use of `.Response`."""

    def __init__(self) -> None:
        self.found = False

    def before_response(self, nodes: Sequence[Node]) -> list[Node]:
        kept: list[Node] = []
        for node in nodes:
            if self.found:
                break
            if node.kind == "action" and ".Response" in node.text:
                self.found = True
                break
            body = self.before_response(node.body)
            other = [] if self.found and node.body else self.before_response(node.other)
            kept.append(Node(node.kind, node.text, body, other))
        return kept


def _fields(nodes: Sequence[Node]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if node.kind != "text":
            found |= set(re.findall(r"\.(\w+)", node.text))
        found |= _fields(node.body) | _fields(node.other)
    return found


def parse(template: str) -> list[Node]:
    """The tree of a template. Raises `LorakitError` when its blocks do not close."""
    pieces: list[tuple[str, str]] = []
    place, trim = 0, False
    for action in ACTION.finditer(template):
        text = template[place : action.start()]
        text = text.lstrip() if trim else text
        text = text.rstrip() if action[1] else text
        pieces += [("text", text), ("action", action[2].strip())]
        place, trim = action.end(), bool(action[3])
    rest = template[place:]
    pieces.append(("text", rest.lstrip() if trim else rest))
    nodes, left = _block([p for p in pieces if p[1]], top=True)
    if left:
        raise LorakitError(f"the template has a block too many: {left[0][1]!r}")
    return nodes


def _block(
    pieces: list[tuple[str, str]], top: bool = False
) -> tuple[list[Node], list[tuple[str, str]]]:
    """(nodes, what is left, its first piece an `else` or `end`)."""
    nodes: list[Node] = []
    while pieces:
        kind, text = pieces[0]
        word = text.split()[0] if kind == "action" else ""
        if word in ("end", "else"):
            break
        pieces = pieces[1:]
        if word in ("if", "range", "with"):
            node, pieces = _branch(word, text[len(word) :].strip(), pieces)
            nodes.append(node)
        elif not text.startswith("/*"):
            nodes.append(Node(kind, text))
    if not pieces and not top:
        raise LorakitError("the template has a block without an end")
    return nodes, pieces


def _branch(
    word: str, condition: str, pieces: list[tuple[str, str]]
) -> tuple[Node, list[tuple[str, str]]]:
    body, pieces = _block(pieces)
    node, (_, text), pieces = Node(word, condition, body), pieces[0], pieces[1:]
    if text == "end":
        return node, pieces
    following = text.removeprefix("else").strip()
    if following:
        inner = following.split()[0]
        other, pieces = _branch(inner, following[len(inner) :].strip(), pieces)
        node.other = [other]
        return node, pieces
    node.other, pieces = _block(pieces)
    return node, pieces[1:]


class _Renderer:
    """Writes nodes with a dot and variables."""

    def __init__(self, values: dict[str, Any]):
        self.root = values
        self.variables: dict[str, Any] = {"$": values}

    def write(self, nodes: Sequence[Node], dot: Any = None) -> str:
        return "".join(self._node(node, self.root if dot is None else dot) for node in nodes)

    def _node(self, node: Node, dot: Any) -> str:
        if node.kind == "text":
            return node.text
        if node.kind == "action":
            name, value = self._assigned(node.text, dot)
            if name:
                self.variables[name] = value
                return ""
            return _printed(value)
        if node.kind == "range":
            return self._range(node, dot)
        name, value = self._assigned(node.text, dot)
        if name:
            self.variables[name] = value
        if not _true(value):
            return self.write(node.other, dot)
        return self.write(node.body, value if node.kind == "with" else dot)

    def _range(self, node: Node, dot: Any) -> str:
        names, assign, expression = node.text.rpartition(":=")
        items = self._value(expression if assign else node.text, dot) or []
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        out = ""
        for i, item in enumerate(items):
            self.variables.update(zip(wanted, (i, item) if len(wanted) > 1 else (item,)))
            out += self.write(node.body, item)
        return out or ("" if items else self.write(node.other, dot))

    def _assigned(self, text: str, dot: Any) -> tuple[str, Any]:
        found = re.fullmatch(r"(\$\w*)\s*:?=\s*(.*)", text, re.DOTALL)
        return (found[1], self._value(found[2], dot)) if found else ("", self._value(text, dot))

    def _value(self, text: str, dot: Any) -> Any:
        words = WORD.findall(text)
        value, left = self._call(words, dot)
        if left:
            raise LorakitError(f"the emulation of Ollama's templates has no {' '.join(left)!r}")
        return value

    def _call(self, words: list[str], dot: Any) -> tuple[Any, list[str]]:
        """A function with its arguments, or one value, up to a closing parenthesis."""
        if not words:
            raise LorakitError("the template has an empty action")
        if words[0] in FUNCTIONS:
            name, words, arguments = words[0], words[1:], []
            while words and words[0] != ")":
                value, words = self._operand(words, dot)
                arguments.append(value)
            return FUNCTIONS[name](*arguments), words
        return self._operand(words, dot)

    def _operand(self, words: list[str], dot: Any) -> tuple[Any, list[str]]:
        word, words = words[0], words[1:]
        if word == "(":
            value, words = self._call(words, dot)
            return value, words[1:]
        if word[0] in '"`':
            text = word[1:-1]
            return (text if word[0] == "`" else _unescaped(text)), words
        if re.fullmatch(r"-?\d+", word):
            return int(word), words
        if word in ("true", "false", "nil"):
            return {"true": True, "false": False, "nil": None}[word], words
        if word[0] not in ".$":
            raise LorakitError(f"the emulation of Ollama's templates has no function {word!r}")
        head, *fields = word.split(".")
        value = self.variables.get(head) if head else dot
        for name in filter(None, fields):
            value = value.get(name) if isinstance(value, dict) else None
        return value, words


def _unescaped(text: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), text)


def _true(value: Any) -> bool:
    return bool(value)


def _printed(value: Any) -> str:
    return "" if value is None else str(value)


def _and(*values: Any) -> Any:
    return next((v for v in values if not _true(v)), values[-1])


def _or(*values: Any) -> Any:
    return next((v for v in values if _true(v)), values[-1])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda one, *others: any(one == other for other in others),
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "not": lambda value: not _true(value),
    "and": _and,
    "or": _or,
    "len": lambda value: len(value or ()),
    "index": lambda values, place: values[place],
    "slice": lambda values, start=0, end=None: values[start:end],
}
