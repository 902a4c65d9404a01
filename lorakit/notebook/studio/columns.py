"""What stands in which column of a table: a guess by name and by content, the person's choice, and a preview."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.common.text import label

# role -> (title, its parts: name in `columns` -> (title, what such a column is called)).
QUESTION = r"frage|question|prompt|instruction|input|anfrage|pregunta|domanda|query|eingabe|text|nachricht|message"
ANSWER = r"antwort|answer|completion|output|response|r[ée]ponse|respuesta|risposta|solution|ausgabe|reply"
LABEL = r"label|class|klasse|kategorie|categor|intent|sentiment|tag|thema|topic|cat[ée]gorie"
ROLES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "": ("found by itself", {}),
    "chat": (
        "a question and an answer",
        {"prompt": ("Question", QUESTION), "answer": ("Answer", ANSWER)},
    ),
    "class": (
        "a text and its category",
        {"text": ("Text", QUESTION), "label": ("Category", LABEL)},
    ),
    "text": ("a text to continue", {"text": ("Text", QUESTION)}),
}
# Columns that the schemas find by themselves.
KNOWN = {"messages", "conversations", "prompt", "completion", "instruction", "output", "text"}


def titles() -> list[dict[str, str]]:
    """The roles for a menu."""
    return [{"name": name, "title": title} for name, (title, _) in ROLES.items()]


def _mapping(role: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    parts = [
        {"name": name, "title": title, "column": chosen.get(name, "")}
        for name, (title, _) in ROLES[role][1].items()
    ]
    return {"role": role, "parts": parts, "preview": []}


def guessed(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A mapping for a table. Nothing is guessed where the schemas find the columns, or where there is no table."""
    if len(columns) < 2 or len(KNOWN & {c.lower() for c in columns}) >= min(2, len(columns)):
        return _mapping("", {})
    if KNOWN & {"messages", "conversations"} & {c.lower() for c in columns}:
        return _mapping("", {})
    lengths = {c: sum(len(row[i]) for row in rows) for i, c in enumerate(columns)}
    for role in ("chat", "class"):
        (one, (_, first)), (two, (_, second)) = ROLES[role][1].items()
        answer = _called(columns, second)
        if answer:
            rest = [c for c in columns if c != answer]
            question = _called(rest, first) or max(rest, key=lambda c: lengths[c])
            return _mapping(role, {one: question, two: answer})
    texts = [c for c in sorted(columns, key=lambda c: -lengths[c]) if lengths[c]][:2]
    texts.sort(key=list(columns).index)  # a question stands before its answer
    return _mapping("chat", dict(zip(("prompt", "answer"), texts, strict=False)))


def _called(columns: Sequence[str], pattern: str) -> str:
    """The first column whose name holds one of these words."""
    return next((c for c in columns if re.search(pattern, c, re.IGNORECASE)), "")


def changed(
    mapping: Mapping[str, Any], change: Mapping[str, str], columns: Sequence[str]
) -> dict[str, Any]:
    """After a choice in a menu: another role, or another column for a part. What is no column is not taken."""
    role = change.get("role", mapping.get("role", ""))
    chosen = {p["name"]: p["column"] for p in mapping["parts"]}
    chosen.update({name: column for name, column in change.items() if column in columns})
    return _mapping(role if role in ROLES else "", chosen)


def understood(fields: Mapping[str, Any]) -> dict[str, str] | None:
    """A row whose columns were found by themselves as (what the model reads, what it learns to answer)."""
    if fields.keys() & {"image", "images", "audio"}:
        return None
    turns = fields.get("messages")
    if isinstance(turns, list) and len(turns) > 1:
        read = turns[-2]["content"] if len(turns) == 2 else "\n".join(_turn(t) for t in turns[:-1])
        answer = turns[-1]["content"]
    else:
        read = fields.get("text")
        answer = fields.get("label", read)
    if not isinstance(read, str) or not isinstance(answer, (str, int)):
        return None
    return {"read": label(read, 300), "answer": label(answer, 300)}


def _turn(turn: Mapping[str, Any]) -> str:
    return f"{turn['role']}: {turn['content']}"


def preview(chosen: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The first rows as (what the model reads, what it learns to answer); empty where the columns are not chosen."""
    read, answer = (
        chosen.get("prompt") or chosen.get("text"),
        chosen.get("answer") or chosen.get("label") or chosen.get("text"),
    )
    if not read or not answer:
        return []
    return [
        {"read": label(row.get(read, ""), 300), "answer": label(row.get(answer, ""), 300)}
        for row in rows[:3]
    ]
