"""A prompt and its completion: text, or turns (https://huggingface.co/docs/trl/dataset_formats#prompt-completion).

{"prompt": "Which latrine ratio is the minimum?", "completion": "One for twenty people."}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data.schemas import column, marks, nested, prompts, text_of
from lorakit.data.schemas.messages import conversation

GIVES = "messages"
RICHNESS = 30
REQUIRED = (
    ("prompt", "question", "query", "problem", "input", "inputs", "user", "human"),
    prompts.ANSWER,
)
OPTIONAL = prompts.INPUT + prompts.BESIDE + marks.NAMES + tuple(prompts.LETTERS)


def refuse(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises `LorakitError` where answers are places among the choices, counted from 1."""
    prompts.refuse(rows, REQUIRED[1])


def convert(fields: dict) -> dict:
    prompt, completion = (column(fields, names) for names in REQUIRED)
    asked, said = (_turns(fields[name]) for name in (prompt, completion))
    if isinstance(fields[prompt], str) and isinstance(fields[completion], str):
        if asked and said is None:  # a log may hold JSON on one side alone
            said = [{"role": "assistant", "content": fields[completion]}]
        elif said and asked is None:
            asked = [{"role": "user", "content": fields[prompt]}]
    if asked is not None and said is not None:
        both = f"{prompt} + {completion}"
        found = conversation({**fields, both: asked + said}, both)
        turns = found["messages"]
        if "assistant" in [turn["role"] for turn in turns[: len(turns) - len(said)]]:
            raise BadRow(
                f"{prompt!r} holds an answer, and every answer is trained: leave the row out, or give all "
                "its turns as 'messages'"
            )
        return found
    question = text_of(fields, REQUIRED[0])
    if whole := prompts.templated(fields, question, REQUIRED[1]):
        return whole
    extra = text_of(fields, prompts.INPUT, empty=True) if prompt != "input" else ""
    if extra.strip():
        question = f"{question}\n\n{extra}"
    turns = prompts.conversation_of(fields, question, REQUIRED[1], before="context")["messages"]
    return {"messages": marks.marked(fields, turns)}


def _turns(value: Any) -> list[Any] | None:
    """A list of turns; also as JSON, one turn alone, or in `messages`, as logs of calls hold them. None of a text."""
    if isinstance(value, list):
        return value
    given = nested(value)
    if isinstance(given, dict):
        given = given.get("messages", [given])
    spoken = isinstance(given, list) and all(
        isinstance(t, dict) and {"role", "content"} <= t.keys() for t in given
    )
    return given if spoken and given else None
