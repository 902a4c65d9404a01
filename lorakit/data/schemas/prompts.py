"""A question with all that a row gives beside it: context, choices, earlier turns, reasoning."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data.schemas import SYSTEM, nested, text_of, turns

INPUT = ("input",)
CONTEXT = ("context", "passage", "article", "paragraph", "document", "background")
CHOICES = ("choices", "options", "endings")
HISTORY = ("history", "previous_turns")
REASONING = ("reasoning", "reasoning_content", "thinking", "chain_of_thought", "cot", "rationale")
BESIDE = CONTEXT + CHOICES + HISTORY + REASONING + SYSTEM
ANY_BESIDE = frozenset(BESIDE)


def conversation_of(
    fields: Mapping[str, Any], question: str, answer: tuple[str, ...], before: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """`messages` of one question and its answer, with context, choices, history and reasoning where the row has them.

    The context stands before the question, choices after it, each with its letter; an answer that is a place among
    the choices, or its letter, becomes letter and text. Earlier turns come first and are not trained.
    """
    if ANY_BESIDE.isdisjoint(fields):  # as most rows are
        return turns(question, text_of(fields, answer, number=True))
    context = [text_of(fields, (name,), empty=True) for name in CONTEXT]
    choices = choices_of(fields)
    asked = [*context, question] if before == "context" else [question, *context]
    if choices:
        asked.append("\n".join(f"{letter}. {words}" for letter, words in choices))
    said = chosen(fields, answer, choices) if choices else text_of(fields, answer, number=True)
    out = turns(
        "\n\n".join(part for part in asked if part.strip()),
        said,
        text_of(fields, SYSTEM, empty=True),
    )["messages"]
    for thought in (text_of(fields, (name,), empty=True) for name in REASONING):
        if thought.strip() and thought.strip() != said.strip():
            out[-1]["reasoning_content"] = thought
            break
    return {"messages": [*out[:-2], *history_of(fields), *out[-2:]]}


def choices_of(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(letter, text) of each choice: a list, or `{"label": […], "text": […]}`, or `{"A": …, "B": …}`."""
    name = next((n for n in CHOICES if fields.get(n) not in (None, [], {}, "")), None)
    if name is None:
        return []
    given = nested(fields[name])
    letters: Sequence[Any] = string.ascii_uppercase
    if isinstance(given, Mapping):
        letters, given = (
            (given["label"], given["text"])
            if {"label", "text"} <= given.keys()
            else ([*given], [*given.values()])
        )
    if not isinstance(given, list) or not isinstance(letters, (list, str)):
        raise BadRow(f"{name!r} is {type(given).__name__}, expected a list of choices")
    if not 2 <= len(given) <= len(letters):
        raise BadRow(f"{name!r} holds {len(given)} choices, expected 2 to 26")
    words = [text_of({name: choice}, (name,), number=True).strip() for choice in given]
    return [(str(letter), text) for letter, text in zip(letters, words, strict=False)]


def chosen(
    fields: Mapping[str, Any], answer: tuple[str, ...], choices: list[tuple[str, str]]
) -> str:
    """The answer to a question with choices. Raises `BadRow` for a place that is not there, or two meanings."""
    name = next((n for n in answer if n in fields), answer[0])
    value = fields.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(choices):
            raise BadRow(f"{name!r} is {value}, and there are {len(choices)} choices, from 0")
        return ". ".join(choices[value])
    words = text_of(fields, (name,)).strip()
    by_text = [i for i, (_, text) in enumerate(choices) if text == words]
    by_letter = [i for i, (letter, _) in enumerate(choices) if words in (letter, f"({letter})")]
    if not by_letter and words.isdecimal() and int(words) < len(choices):
        by_letter = [int(words)]
    found = {*by_text, *by_letter}
    if len(found) > 1:
        raise BadRow(
            f"{name!r} is {words!r}, which may be the letter or place of one choice or the text of another"
        )
    return ". ".join(choices[found.pop()]) if found else words


def history_of(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Earlier turns: pairs of question and answer. They are context, so their answers have weight 0."""
    name = next((n for n in HISTORY if fields.get(n) not in (None, [], "")), None)
    if name is None:
        return []
    given = nested(fields[name])
    out: list[dict[str, Any]] = []
    if not isinstance(given, list):
        raise BadRow(f"{name!r} is {type(given).__name__}, expected a list of pairs")
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{name!r} holds {str(pair)[:40]}, expected pairs of question and answer")
        for role, words in zip(("user", "assistant"), pair, strict=True):
            out.append({"role": role, "content": text_of({name: words}, (name,))})
        out[-1]["weight"] = 0.0
    return out
