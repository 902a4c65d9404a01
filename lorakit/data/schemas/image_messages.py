"""A conversation about pictures: a part of type image, or <image>, stands for each of them, in their order; where
none does, they stand before the first question.

{"image": "rust.jpg", "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Rust."}]}

Or each part holds its own picture: {"type": "image", "image": "rust.jpg"}, or, as OpenAI stores it,
an address that holds the file: {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,…"}}.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data.example import Example
from lorakit.data.schemas import column, medium_of, messages, nested

GIVES = "image"
RICHNESS = 90
TURNS = (*messages.REQUIRED[0], "conversations", "conversation")
REQUIRED = (TURNS,)
OPTIONAL = (*messages.OPTIONAL, "images", "image")
PICTURES = ("images", "image")
HOLDS = ("image", "image_url", "url", "path")  # keys of a part that holds its picture


def fits(rows: Sequence[Example]) -> bool:
    """Whether one of these rows has a picture in a column of its own, or more than half have some in their turns."""
    beside = any(row.fields.get(name) not in (None, [], "") for row in rows for name in PICTURES)
    return beside or sum(bool(_inside(row.fields)) for row in rows) * 2 > len(rows)


def _inside(fields: dict) -> list[Any]:
    """The pictures that parts of the turns hold themselves."""
    turns = nested(next((fields[name] for name in TURNS if name in fields), None))
    found = []
    for turn in turns if isinstance(turns, list) else ():
        parts = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
                held = next((part[n] for n in HOLDS if n in part), None)
                held = held.get("url", held) if isinstance(held, dict) else held
                found += [] if held is None else [held]
    return found


def _unpacked(held: Any) -> Any:
    """A picture inside an address ("data:image/png;base64,…") as bytes; any other as it is."""
    if not isinstance(held, str):
        return held
    if held.startswith(("http://", "https://")):
        raise BadRow(f"{held[:60]} lies on another machine; download it and name the file")
    if not held.startswith("data:"):
        return held.removeprefix("file://")
    try:
        return {"bytes": base64.b64decode(held.partition(",")[2], validate=True), "path": None}
    except ValueError:
        raise BadRow("a picture in base64 is cut or damaged") from None


def convert(fields: dict) -> dict:
    name = next((n for n in PICTURES if fields.get(n) not in (None, [], "")), None)
    given = [*map(_unpacked, _inside(fields))] if name is None else fields[name]
    given = given if isinstance(given, list) else [given]
    pictures = [medium_of({name or "image": one}, (name or "image",)) for one in given]
    if not pictures:
        raise BadRow("no picture, as other rows have")
    turns = nested(fields[column(fields, TURNS)])
    of_turns: list[tuple[object, int]] = []
    words = messages.convert(
        {
            **fields,
            "messages": [_without_pictures(turn, of_turns) for turn in turns]
            if isinstance(turns, list)
            else turns,
        }
    )["messages"]
    users = [turn for turn in words if turn["role"] == "user"]
    counts = [n for role, n in of_turns if role in ("user", "human")]
    if sum(counts) == 0 and users:
        counts[0] = len(pictures)  # no mark says where they belong: at the beginning
    if sum(counts) != len(pictures):
        raise BadRow(
            f"{len(pictures)} pictures, and {sum(counts)} parts of type image in the user's turns"
        )
    for turn, count in zip(users, counts, strict=True):
        turn["images"] = count
    return {"media": pictures, "turns": words}


def _without_pictures(turn: object, counts: list[tuple[object, int]]) -> object:
    """The turn's words; how many pictures it showed is noted in `counts`."""
    if not isinstance(turn, dict):
        return turn
    name = "content" if "content" in turn else "value"
    parts = turn.get(name)
    if isinstance(parts, str):
        counts.append((turn.get("role", turn.get("from")), parts.count("<image>")))
        return {**turn, name: parts.replace("<image>", "").strip()}
    if not isinstance(parts, list):
        counts.append((turn.get("role", turn.get("from")), 0))
        return turn
    words = [
        p for p in parts if not (isinstance(p, dict) and p.get("type") in ("image", "image_url"))
    ]
    counts.append((turn.get("role", turn.get("from")), len(parts) - len(words)))
    return {**turn, name: words}
