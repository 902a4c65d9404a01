"""A conversation about pictures: a part of type image, or <image>, stands for each of them, in their order; where
none does, they stand before the first question.

{"image": "rust.jpg", "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Rust."}]}
"""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.common.errors import BadRow
from lorakit.data.example import Example
from lorakit.data.schemas import column, medium_of, messages

GIVES = "image"
RICHNESS = 90
TURNS = (*messages.REQUIRED[0], "conversations", "conversation")
REQUIRED = (TURNS, ("images", "image"))
OPTIONAL = messages.OPTIONAL


def fits(rows: Sequence[Example]) -> bool:
    """Whether one of these rows, at least, has a picture."""
    return any(row.fields.get(name) not in (None, [], "") for row in rows for name in REQUIRED[1])


def convert(fields: dict) -> dict:
    name = column(fields, REQUIRED[1])
    given = fields[name] if isinstance(fields[name], list) else [fields[name]]
    pictures = [medium_of({name: one}, (name,)) for one in given]
    turns = fields[column(fields, TURNS)]
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
