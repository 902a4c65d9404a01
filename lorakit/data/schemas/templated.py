"""Text that a chat template has been applied to already: its turns are trained, through the model's own template.

{"text": "<s>[INST] Is the well safe? [/INST] Boil it first. </s>"}

So is text with a line for each speaker: "Question: …\\nAnswer: …", "Q: …\\nA: …", "User: …\\nAssistant: …".
"""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.common.errors import BadRow
from lorakit.data import markup
from lorakit.data.example import Example
from lorakit.data.schemas import text_of
from lorakit.data.schemas.messages import conversation

GIVES = "messages"
RICHNESS = 15
REQUIRED = (("text",),)
OPTIONAL = ()


def fits(rows: Sequence[Example]) -> bool:
    """Whether half of these rows, at least, are written in one of the formats."""
    texts = [row.fields.get("text") for row in rows]
    return sum(isinstance(t, str) and bool(_turns(t)) for t in texts) * 2 >= len(texts)


def _turns(text: str) -> list[dict[str, str]] | None:
    return markup.turns_of(text) or markup.lines_of(text)


def convert(fields: dict) -> dict:
    turns = _turns(text_of(fields, REQUIRED[0]))
    if turns is None:
        raise BadRow("'text' is not written with a chat template, as most rows are")
    return conversation({"turns": turns}, "turns")
