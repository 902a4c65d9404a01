"""A question with all that a row gives beside it: context, choices, earlier turns, reasoning."""

from __future__ import annotations

import contextlib
import itertools
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data import markup
from lorakit.data.schemas import SYSTEM, column, nested, text_of, turns
from lorakit.data.schemas.messages import conversation

ANSWER = (
    "completion", "response", "solution", "output", "answer", "answers", "answerkey", "answer_key",
    "correct_answer", "canonical_solution", "targets", "assistant",
)  # fmt: skip
INPUT = ("input",)
CONTEXT = ("context", "passage", "article", "paragraph", "document", "background")
CHOICES = ("choices", "options", "endings")
# Columns that hold a choice each: A, B, …; option_a, …; option1, …; opa, …
STARTS = ("", "option_", "option", "choice_", "choice", "op", "ans_")
LETTERED = tuple(tuple(f"{start}{one}" for one in "abcdefgh") for start in STARTS) + tuple(
    tuple(f"{start}{one}" for one in "12345678") for start in STARTS[1:5]
)
HISTORY = ("history", "previous_turns")
REASONING = ("reasoning", "reasoning_content", "thinking", "chain_of_thought", "cot", "rationale")
BESIDE = CONTEXT + CHOICES + HISTORY + REASONING + SYSTEM
LETTERS = frozenset(itertools.chain(*LETTERED))
ANY_BESIDE = frozenset(BESIDE).union(*(names[:2] for names in LETTERED))


def lettered(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that hold a choice each, two at least, from the first on."""
    for names in LETTERED:
        there = tuple(itertools.takewhile(fields.__contains__, names))
        # A bare letter may name anything: as a choice it holds words.
        if len(there) > 1 and (len(names[0]) > 1 or all(isinstance(fields[n], str) for n in there)):
            return there
    return ()


def conversation_of(
    fields: Mapping[str, Any], question: str, answer: tuple[str, ...], before: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """`messages` of one question and its answer, with context, choices, history and reasoning where the row has them.

    The context stands before the question, choices after it, each with its letter; an answer that is a place among
    the choices, or its letter, becomes letter and text. Earlier turns come first and are not trained.
    """
    if ANY_BESIDE.isdisjoint(fields):  # as most rows are
        return turns(question, answer_of(fields, answer))
    context = [text_of(_joined(fields, name), (name,), empty=True) for name in CONTEXT]
    choices = choices_of(fields)
    asked = [*context, question] if before == "context" else [question, *context]
    if choices:
        asked.append("\n".join(f"{letter}. {words}" for letter, words in choices))
    said = chosen(fields, answer, choices) if choices else answer_of(fields, answer)
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


def templated(
    fields: Mapping[str, Any], question: str, answer: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]] | None:
    """`messages` of a question that a chat template has been applied to already, None for any other."""
    if not markup.may_be(question):
        return None
    whole = markup.turns_of(question + text_of(fields, answer, number=True))
    if whole is None or whole[-1]["role"] != "assistant":
        return None
    return conversation({**fields, "turns": whole}, "turns")


def answer_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The answer: text, a number, or the only one of a list; SQuAD's `{"text": […], …}` holds equally good ones.

    Raises `BadRow` for a list of none, or of several that differ.
    """
    name = column(fields, names)
    value = fields[name]
    if name not in ("answer", "answers") or not isinstance(nested(value), (dict, list)):
        return text_of(fields, names, number=True)
    value = nested(value)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        if not value["text"]:
            raise BadRow(f"{name!r} holds no answer: the question cannot be answered")
        value = value["text"][0]
    elif isinstance(value, list):
        if value and isinstance(value[0], (dict, list)):
            return text_of(fields, names)
        if len({json.dumps(one, default=str) for one in value}) != 1:
            raise BadRow(f"{name!r} holds {len(value)} answers, expected one")
        value = value[0]
    return text_of({name: value}, (name,), number=True)


def _joined(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The same fields, a context of several texts as one."""
    value = nested(fields.get(name))
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        return fields
    return {name: "\n\n".join(value)}


def choices_of(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(letter, text) of each choice: a list, or `{"label": […], "text": […]}`, or `{"A": …, "B": …}`."""
    name = next((n for n in CHOICES if fields.get(n) not in (None, [], {}, "")), None)
    if name is None:
        names = lettered(fields)
        there = [n for n in names if fields[n] not in (None, "")]
        return [
            (letter, text_of(fields, (n,), number=True).strip())
            for letter, n in zip(string.ascii_uppercase, there, strict=False)
        ]
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
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(choices):
            raise BadRow(f"{name!r} is {value}, and there are {len(choices)} choices, from 0")
        return ". ".join(choices[value])
    words = text_of({name: value}, (name,)).strip()
    by_text = [i for i, (_, text) in enumerate(choices) if text == words]
    by_letter = [
        i
        for i, (letter, _) in enumerate(choices)
        if words in (letter, f"({letter})")
        or (not by_text and words.strip("().").casefold() == letter.casefold())
    ]
    columns = {n: i for i, n in enumerate(lettered(fields))}
    if not by_letter and words.casefold() in columns:  # "option_b"
        by_letter = [columns[words.casefold()]]
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
    if all(isinstance(turn, dict) for turn in given):
        earlier = conversation({name: given}, name)["messages"]
        return [t | ({"weight": 0.0} if t["role"] == "assistant" else {}) for t in earlier]
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{name!r} holds {str(pair)[:40]}, expected pairs of question and answer")
        for role, words in zip(("user", "assistant"), pair, strict=True):
            out.append({"role": role, "content": text_of({name: words}, (name,))})
        out[-1]["weight"] = 0.0
    return out


def refuse(rows: Sequence[Mapping[str, Any]], answer: tuple[str, ...]) -> None:
    """Raises `LorakitError` where answers are places among the choices, counted from 1."""
    places = []
    for fields in rows:
        value = next((fields[n] for n in answer if n in fields), None)
        with contextlib.suppress(BadRow):
            if (choices := choices_of(fields)) and str(value).strip().isdecimal():
                if any(str(value).strip() in choice for choice in choices):
                    return  # the answer's letter or words
                places.append((int(str(value)), len(choices)))
    if places and min(p for p, _ in places) > 0 and any(p == n for p, n in places):
        name = next(n for n in answer if any(n in fields for fields in rows))
        raise LorakitError(
            f"{name!r} seems to count the choices from 1; places are counted from 0",
            setting="columns",
            value=name,
            cure="write the letter (A, B, …) or the text of the choice, or subtract 1",
        )
