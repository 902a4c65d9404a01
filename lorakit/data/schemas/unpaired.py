"""Single answers with a mark, good or bad (https://huggingface.co/docs/trl/dataset_formats#unpaired-preference).

{"prompt": "Is the well safe?", "completion": "Boil the water first.", "label": true}

In place of prompt and completion a row may have `messages` or `conversations` that end with the marked answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.common.errors import BadRow
from lorakit.data import meanings
from lorakit.data.example import Example
from lorakit.data.schemas import SYSTEM, column, prompt_completion, prompts
from lorakit.data.schemas.messages import conversation

GIVES = "desirable"
RICHNESS = 70
TURNS = ("messages", "conversations")
REQUIRED = (
    (*TURNS, *prompt_completion.REQUIRED[1]),
    ("label", "kto_tag", "desirable", "thumbs_up"),
)
OPTIONAL = (*prompt_completion.REQUIRED[0], *prompts.INPUT, *prompts.BESIDE, *SYSTEM)
CLASSES = {True: "desirable", False: "undesirable"}


def fits(rows: Sequence[Example]) -> bool:
    """Whether the marks say good or bad in words, or as true and false; numbers in `label` may be classes."""
    found = [_mark(row.fields) for row in rows]
    return sum(mark is not None for mark in found) * 2 > len(rows)


def convert(fields: dict) -> dict:
    """`messages`, `desirable` (a bool), and the same as `label`, of which each set gets its share."""
    name = next((n for n in TURNS if n in fields), None)
    found = conversation(fields, name) if name else prompt_completion.convert(fields)
    mark = _mark(fields)
    if mark is None:
        name = column(fields, REQUIRED[1])
        raise BadRow(f"{name!r} is {str(fields[name])[:40]!r}, expected true (good) or false (bad)")
    return {**found, "desirable": mark, "label": CLASSES[mark]}


def _mark(fields: dict) -> bool | None:
    name = next((n for n in REQUIRED[1] if n in fields), "")
    return meanings.verdict(fields.get(name), name)
