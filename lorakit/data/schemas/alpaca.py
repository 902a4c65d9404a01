"""Alpaca (https://github.com/tatsu-lab/stanford_alpaca) and Dolly: instruction, optional input, output.

{"instruction": "Turn this into one radio message.", "input": "Bridge gone at mile 4 …", "output": "Bridge out, …"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.data.schemas import marks, prompts, text_of

GIVES = "messages"
RICHNESS = 40
REQUIRED = (("instruction",), (*dict.fromkeys(("output", "response", *prompts.ANSWER)),))
OPTIONAL = prompts.INPUT + prompts.BESIDE + marks.NAMES + tuple(prompts.LETTERS)


def refuse(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises `LorakitError` where answers are places among the choices, counted from 1."""
    prompts.refuse(rows, REQUIRED[1])


def convert(fields: dict) -> dict:
    """The input, when there is one, follows the instruction after an empty line."""
    instruction = text_of(fields, REQUIRED[0])
    if whole := prompts.templated(fields, instruction, REQUIRED[1]):
        return whole
    extra = text_of(fields, prompts.INPUT, empty=True)
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    found = prompts.conversation_of(fields, question, REQUIRED[1])["messages"]
    return {"messages": marks.marked(fields, found)}
