"""Columns whose names say something about a row: whether it is good, how much it counts, what belongs to it.

Such a column is used, or the file is refused with the setting that decides about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.conditions import condition
from lorakit.data.example import Example
from lorakit.data.schemas import marks, prompts

# Whether the row is good, as true or false.
VERDICTS = re.compile(
    r"labels?|(is_)?(correct|good|accepted|approved|valid|helpful|safe|desirable|chosen)|correctness|passed|verdict"
    r"|kto_tag|thumbs_up|is_answer_correct"
)
# Whether it is bad, as true or false.
FAULTS = re.compile(
    r"((is|was|has|marked)_)?(as_)?(deleted|removed|flagged|toxic|toxicity|spam|duplicated?|invalid|incorrect|wrong"
    r"|rejected|hidden|unsafe|harmful|offensive|hallucinat(ed|ion)|low_quality|corrupted|broken|errors?|failed"
    r"|thumbs_down|downvoted|disliked|blocked|banned|ignored?|skip(ped)?|excluded?|discard(ed)?|refusal|refused)"
)
# Judgements that may be words of their own, too.
REMARKS = re.compile(r"(\w+_)?(feedback|reaction|vote|judge?ment)")
SCORES = re.compile(
    r"(?!language_)(\w+_)?(ratings?|scores?|rewards?|stars|grade)|quality|rank|(\w+_)?((up|down)?votes|(dis)?likes"
    r"|karma|helpfulness)"
)
PAIRS = re.compile(r"(\w+_)?(chosen|rejected|preferred|dispreferred)(_\w+)?")
CONTENT = re.compile(
    "|".join([*prompts.INPUT, *prompts.BESIDE])
    + r"|contexts|passages|documents|system\w*|option_?[a-e1-5]|choice_?[a-e1-5]|support(ing_\w+)?|evidence"
    r"|facts|definition|instructions?|questions?"
)
# Answers that are wrong, to choose from.
WRONG = re.compile(r"distractors?_?\d*|(incorrect|wrong|false)_(answers?|options?|choices?)_?\d*")
# A second text of a row whose first text has a class.
SECOND = re.compile(
    r"(sentence|text|question|statement)_?\d*|premise|hypothesis|query|claim|context|passage|subject"
)
WEIGHTS = re.compile("|".join(marks.NAMES) + r"|(sample|importance)_weight")
TOOLS = re.compile(r"tools|functions|tool_calls?|function_calls?")
MEDIA = re.compile(
    r"(image|picture|photo|img|audio|sound|speech|video)s?(_(path|file|url|name|bytes)s?)?"
)
TREE = re.compile(r"parent_id|message_tree_id|role|from")
# Reasoning under another name than those that are used.
THOUGHTS = re.compile(
    r"(\w+_)?(cot|reasoning|rationales?|thinking|thoughts?|chain_of_thought|(reasoning|thinking)_(content|trace"
    r"|traces|steps|text|trajectory|trajectories))"
)
# What the text of a row may be labelled, answered or followed with, where only the text would be trained.
CLASSES = re.compile(
    r"(\w+_)?labels?(_\w+)?|targets?|(\w+_)?class(es)?|class_\w+|cats|(\w+_)?(categor(y|ies)|topics?|sentiment|emotions?"
    r"|intent|polarity|stance)|tags?"
)
ANSWERS = re.compile(
    "|".join(prompts.ANSWER)
    + r"|summary|highlights|abstract|target|translation|reply|question|instruction|prompt"
)
# The right answer beside one that a model gave.
RIGHT = re.compile(
    r"(ground_truth|reference|gold|expected|ideal|correct)s?(_(answer|output|response|completion|label)s?)?"
)
# What people who looked a row through say of it, whatever the column's name.
LOOKED = frozenset(
    ("accept", "accepted", "reject", "rejected", "ignore", "ignored", "approved", "declined")
)
FALSE, TRUE = ("false", "no", "bad", "rejected"), ("true", "yes", "good", "chosen", "accepted")
# The same of a column that is no label: of that, "positive" is a class.
AGAINST = (
    *FALSE,
    "incorrect",
    "wrong",
    "invalid",
    "thumbs_down",
    "down",
    "dislike",
    "disliked",
    "negative",
    "👎",
    "reject",
    "ignore",
    "ignored",
    "declined",
)
FOR = (
    *TRUE,
    "correct",
    "right",
    "valid",
    "thumbs_up",
    "up",
    "like",
    "liked",
    "positive",
    "👍",
    "accept",
    "approved",
)
NUMBER = re.compile(r"\s*[-+]?[\d.,]+\s*")


@dataclass(frozen=True)
class Choices:
    """What the user decides about columns."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """The schema's name -> the file's column, or a text with columns in braces."""
    keep_rows: Mapping[str, Any] = field(default_factory=dict)
    """A column of the file -> the values of rows to train on: see `conditions.condition`."""
    ignore_columns: Sequence[str] = ()
    """Columns that carry meaning and are deliberately left out."""


def judge(
    rows: Sequence[Example],
    schema: ModuleType,
    unused: Sequence[str],
    choices: Choices,
    decided: set[str],
    asked: bool = False,
) -> list[str]:
    """The unused columns that mark bad rows by true and false.

    Raises `LorakitError` for another column that carries meaning. `decided` are names that the user's `columns` settle;
    `asked`, whether the user named the task.
    """
    verdicts: list[str] = []
    refused: dict[str, tuple[str, str]] = {}
    binary: list[str] = []  # columns of 0 and 1, or of true and false
    mapped = bool(choices.columns)
    first = next((c for c in rows[0].fields if canonical(c) in schema.REQUIRED[0]), "question")
    for column in unused:
        name = canonical(column)
        if column in choices.ignore_columns or name in decided or _neutral(name, schema):
            continue
        values = [row.fields.get(column) for row in rows]
        values = [v for v in values if v not in (None, "", [], {})]
        if not values:
            continue
        if {str(v).removesuffix(".0") for v in values} in ({"0", "1"}, {"False", "True"}):
            binary.append(column)
        if _judges(name, values, schema):
            verdicts.append(column)
            continue
        cure = _second(name, column, values, mapped, schema, first) or _cure(
            name, column, values, mapped, schema.GIVES, first
        )
        if cure is None and not (asked and schema.GIVES == "text"):
            cure = _beside(name, column, schema, values, rows)
        if cure:
            refused[column] = cure
    if schema.GIVES == "text" and not asked:
        refused |= _marks([c for c in binary if c not in refused])
    if refused:
        column, (what, advice) = next(iter(refused.items()))
        others = [repr(c) for c in refused if c != column][:4]
        also = f" (so do {', '.join(others)})" if others else ""
        raise LorakitError(
            f"the column {column!r} {what}, and schema {schema.__name__.rpartition('.')[2]} does not use it{also}",
            where=rows[0].file,
            setting="ignore_columns",
            value=column,
            cure=f"{advice}, or leave it out on purpose with ignore_columns: [{', '.join(refused)}]",
        )
    return verdicts


def _marks(columns: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What columns of 0 and 1 beside a text may mean: several are labels, and one may be the class."""
    if len(columns) > 1:
        several = (
            "holds 0 and 1 beside a text, as one label of several does (multi-label classification)"
        )
        return dict.fromkeys(
            columns, (several, f"train one class with columns: {{label: {columns[0]}}}")
        )
    return {
        c: (
            "may be the class of the text, or mark bad rows",
            f"use it with columns: {{label: {c}}}, or choose the rows with keep_rows: {{{c}: false}}",
        )
        for c in columns
        if FAULTS.fullmatch(canonical(c))
    }


def _judges(name: str, values: Sequence[Any], schema: ModuleType) -> bool:
    """Whether every value of a column says of its row that it is good or that it is bad."""
    if any(verdict(value, name) is None for value in values):
        return False
    if VERDICTS.fullmatch(name):
        return True
    if schema.GIVES == "text":  # beside a text such a column may be its class
        return False
    words = all(isinstance(value, str) for value in values)
    if words and {canonical(value) for value in values} <= LOOKED:
        return True
    return bool(
        FAULTS.fullmatch(name) or (words and (REMARKS.fullmatch(name) or SCORES.fullmatch(name)))
    )


def _neutral(name: str, schema: ModuleType) -> bool:
    """Whether this name says nothing about a row of the schema, as another name of the class it uses."""
    labels = schema.REQUIRED[1] if getattr(schema, "LABELS", False) else ()
    paired = schema.GIVES == "pair" and PAIRS.fullmatch(name)
    return name in (*getattr(schema, "NEUTRAL", ()), *labels) or bool(paired)


def _beside(
    name: str,
    column: str,
    schema: ModuleType,
    values: Sequence[Any],
    rows: Sequence[Example],
) -> tuple[str, str] | None:
    """(what the column may mean, what to do), by its values and the schema that does not use it."""
    words = all(isinstance(value, str) for value in values)
    if schema.GIVES == "messages" and THOUGHTS.fullmatch(name):  # noqa: SIM102
        if words or all(isinstance(value, list) for value in values):
            return ("may hold the reasoning", f"use it with columns: {{reasoning: {column}}}")
    if schema.GIVES == "messages" and RIGHT.fullmatch(name) and words:
        return ("may be the right answer", f"train it with columns: {{answer: {column}}}")
    if schema.GIVES == "messages" and name == "text" and words and "text" not in schema.REQUIRED[0]:
        asked = next((n for n in schema.REQUIRED[0] if n in rows[0].fields), "")
        question = rows[0].fields.get(asked)
        if isinstance(question, str) and not any(question.strip() in value for value in values[:1]):
            return (
                "may belong to the question",
                f"put it there with columns: {{prompt: '{{{column}}} {{{asked}}}', answer: …}}",
            )
    if schema.GIVES != "text":
        return None
    if CLASSES.fullmatch(name) and not all(isinstance(value, bool) for value in values):
        return ("may be the class of the text", f"use it with columns: {{label: {column}}}")
    if ANSWERS.fullmatch(name) and words:
        return ("may be what to answer", f"use it with columns: {{prompt: text, answer: {column}}}")
    return None


def _second(
    name: str, column: str, values: Sequence[Any], mapped: bool, schema: ModuleType, first: str
) -> tuple[str, str] | None:
    """The same for a second text beside the one that has a class."""
    text = schema.GIVES == "messages" and getattr(schema, "LABELS", False)
    if not text or mapped or not SECOND.fullmatch(name):
        return None
    if not all(isinstance(value, str) for value in values):
        return None
    return (
        "may belong to the text",
        f"join them with columns: {{text: '{{{column}}} {{{first}}}', label: …}}",
    )


def _cure(
    name: str, column: str, values: Sequence[Any], mapped: bool, gives: str, first: str
) -> tuple[str, str] | None:
    """(what the column may mean, what to do), None when its name says nothing.

    Who names the columns decides about the content; what marks good and bad rows has to be decided all the same.
    """
    if VERDICTS.fullmatch(name):
        return (
            "may say which rows are good",
            f"choose the rows with keep_rows: {{{column}: [VALUE, …]}}",
        )
    if SCORES.fullmatch(name):
        words = all(isinstance(value, str) and not NUMBER.fullmatch(value) for value in values)
        wanted = "[VALUE, …]" if words else "'>= 4'"
        keep = f"choose the rows with keep_rows: {{{column}: {wanted}}}"
        if gives == "text" and not mapped:
            return (
                "may be the class of the text, or say how good a row is",
                f"train it with columns: {{label: {column}}}, or {keep}",
            )
        return ("may say how good a row is", keep)
    if PAIRS.fullmatch(name):
        return ("belongs to preference pairs", "name the answer to train with columns: {answer: …}")
    if mapped:
        return None
    if WRONG.fullmatch(name):
        return ("holds wrong answers to choose from", "put all choices into one list, 'choices'")
    if WEIGHTS.fullmatch(name):
        return ("may say how much a row counts", "move it into the turns as 'weight'")
    if CONTENT.fullmatch(name):
        return (
            "may belong to the question",
            f"put it there with columns: {{prompt: '{{{column}}} {{{first}}}', answer: …}}",
        )
    if TOOLS.fullmatch(name):
        return ("offers tools to the model, which cannot be trained", "remove the column")
    if MEDIA.fullmatch(name):
        return (
            "holds pictures, sound or video, and only the words would be trained",
            "take a model and a task for them",
        )
    if TREE.fullmatch(name):
        return (
            "says that rows are turns of one conversation",
            "join the turns of each conversation into one row with 'messages'",
        )
    return None


def canonical(name: str) -> str:
    """`System Prompt` and `system-prompt` are `system_prompt`."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def verdict(value: Any, name: str) -> bool | None:
    """True for a row marked good, False for one marked bad, None for what says neither.

    In a column `label`, 0 and 1 may be classes and say neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = canonical(value)
        good, bad = (TRUE, FALSE) if "label" in name else (FOR, AGAINST)
        return word in good if word in good + bad else None
    if isinstance(value, (int, float)) and value in (0, 1) and "label" not in name:
        return bool(value)
    return None


def rejecter(
    verdicts: Sequence[str], keep_rows: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], str]:
    """Why a row is not trained on by what its columns say of it, "" when it is."""
    conditions = {column: condition(wanted) for column, wanted in keep_rows.items()}

    def reject(fields: Mapping[str, Any]) -> str:
        for column in verdicts:
            value = fields.get(column)
            bad = bool(FAULTS.fullmatch(canonical(column)))
            if value not in (None, "", [], {}) and verdict(value, "") is bad:
                marked = "marked as bad" if bad else "not marked as good"
                return f"{column!r} is {_shown(value)}: the row is {marked}"
        for column, holds in conditions.items():
            if not holds(fields.get(column)):
                return f"{column!r} is {_shown(fields.get(column))}, keep_rows asks for {keep_rows[column]!r}"
        return ""

    return reject


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else repr(value)[:40]
