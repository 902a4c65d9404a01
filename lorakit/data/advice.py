"""What is said of rows that no schema fits: their columns, why that may be, and how to name them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data import meanings
from lorakit.data.example import Example
from lorakit.data.meanings import canonical
from lorakit.data.report import LISTED, listed
from lorakit.data.schemas import PICTURES, SOUNDS, SYSTEM, ends, prompts

# Columns with a list of answers.
SEVERAL = ("responses", "completions", "answers", "outputs", "generations", "candidates")
LOOKED_AT = 200  # rows
WORDS = 1.5  # mean words of a value from which a column holds text
# Names, or their last part, of what is asked, in languages of users.
ASKED = re.compile(
    r"(\w+_)?(prompt|question|questions|query|instruction|problem|inputs?|goal|task|request|patient|frage|pregunta|domanda"
    r"|pergunta|вопрос|问题|問題|質問|سؤال)\d?"
)
# What it is to be answered with.
ANSWERED = re.compile(
    r"(\w+_)?(answer|response|completion|outputs?|targets?|reply|solution|summary|highlights|abstract|translation|doctor"
    r"|sql|code|corrected|antwort|réponse|reponse|respuesta|risposta|resposta|ответ|答案|回答|答え|جواب)"
)
# What says where a row is from, and nothing that could be learnt.
APART = re.compile(
    r"(\w+_)?(id|idx|index|key|uuid|hash|url|link|source|path|repo|file|split|lang|language|language_code|date|time"
    r"|timestamp|author|user|license|model)|\w+_(id|type)"
)
NAME = re.compile(r"[^\W\d][\w.]*( [\w.]+)*")  # of a column, as YAML takes it without quotes
CLASS = re.compile(r"(\w+_)?(decision|verdict|outcome|result|type|priority|status)|is_\w+")


def no_schema(
    rows: Sequence[Example], columns: Mapping[str, int], schemas: Mapping[str, ModuleType]
) -> LorakitError:
    """What to raise for rows that fit none of these schemas."""
    names = sorted(map(str, columns))
    shown = listed(names, quoted=False) or "(none)"
    kinds = dict.fromkeys((row.file, tuple(map(str, row.fields))) for row in rows)
    if len({file for file, _ in kinds}) > 1 and len({names for _, names in kinds}) > 1:
        each = [f"{file}: {listed(names, quoted=False)}" for file, names in kinds]
        return LorakitError(
            f"{rows[0].file}: the files of this folder hold different columns ({'; '.join(each[:LISTED])})",
            setting="data",
            cure="name one of them, or put those of one kind into a folder of their own",
        )
    several = [n for n in SEVERAL if isinstance(rows[0].fields.get(n), list)]
    if several:
        return LorakitError(
            f"{several[0]!r} holds several answers to one question: which of them to train, the row does not say",
            where=rows[0].file,
            setting="data",
            cure="write a row for each good answer (prompt, completion), or pairs (prompt, chosen, rejected)",
        )
    example = columns_for(rows)
    cure = (
        f"Name them with `columns`, e.g. columns: {example}"
        if example
        else "Write rows with a prompt and its completion, or a text and its label"
    )
    return LorakitError(
        f"{rows[0].file}: the columns {shown} fit no schema ({_wanted(schemas)}). "
        f"{_header(rows[0].file, names)}{cure}"
    )


def _header(file: str, names: Sequence[str]) -> str:
    """A word about the header of a table, which may be its first record."""
    if not file.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".tab", ".txt")):
        return ""
    if names and all(map(str.isdecimal, names)):
        return (
            "The first record looks like data, so the columns have numbers for names; if it is a header, set "
            "format: {csv: {header: true}}. "
        )
    return (
        "The first record was taken for the header; if it is data, set format: {csv: {header: false}}, and the "
        "columns have the numbers 1, 2, … for names. "
    )


def _wanted(schemas: Mapping[str, ModuleType]) -> str:
    """The first name of each slot, of a few schemas."""
    shown = [f"{n}: {' + '.join(c[0] for c in m.REQUIRED)}" for n, m in schemas.items()]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return "; ".join(shown[:LISTED]) + more


def columns_for(rows: Sequence[Example]) -> str:
    """A value of the setting `columns` for these rows, by names and values; "" where no column holds text."""
    values = _values(rows[:LOOKED_AT])
    strings = [
        p
        for p in values
        if isinstance(values[p][0], str)
        and not APART.fullmatch(_last(p))
        and _last(p) not in SYSTEM
        and not meanings.NUMBER.fullmatch(values[p][0])
        and not ends(values[p][0], (*PICTURES, *SOUNDS))
    ]
    texts = [p for p in strings if _is_text(p, values[p])] or strings
    if found := _with_choices(values, texts) or _with_media(values, texts):
        return found
    answers = [
        p for p in texts if ANSWERED.fullmatch(_last(p)) or meanings.RIGHT.fullmatch(_last(p))
    ]
    classes = [path for path in values if path not in answers and _is_class(path, values[path])]
    if answers:
        answers.sort(key=lambda path: not meanings.RIGHT.fullmatch(_last(path)))
        # Where every text may be the answer, it is the last one; else the first that may be.
        answer = answers[0] if len(answers) < len(texts) else answers[-1]
        asked = [p for p in texts if p not in answers] or [p for p in texts if p != answer]
        if asked:
            return f"{{prompt: {_filled(_first(asked))}, answer: {_filled([answer])}}}"
    asked = [path for path in texts if path not in classes]
    if classes and asked:
        return f"{{text: {_filled(asked[:3])}, label: {_filled(classes[:1])}}}"
    named = [path for path in texts if ASKED.fullmatch(_last(path))]
    prompt = min(named or texts, key=lambda path: "question" not in path, default="")
    said = [p for p in texts if p != prompt and not meanings.CONTENT.fullmatch(_last(p))]
    said = said or [p for p in named if p != prompt]
    if said:
        answer = max(said, key=lambda path: sum(len(str(v)) for v in values[path]))
        return f"{{prompt: {_filled([prompt])}, answer: {_filled([answer])}}}"
    whole = not any(isinstance(value[0], (list, dict)) for value in values.values())
    return f"{{text: {_filled(texts)}}}" if len(texts) == 1 and whole else ""


def _with_media(values: Mapping[str, list[Any]], texts: Sequence[str]) -> str:
    """The same for files of sounds and pictures and what is said of them."""
    for slot, endings in (("audio", SOUNDS), ("image", PICTURES)):
        files = [p for p in values if all(ends(v, endings) for v in values[p])]
        said = [p for p in texts if p not in files]
        classes = [p for p in values if slot == "image" and _is_class(p, values[p])]
        if files and (said or classes):
            what = "text" if slot == "audio" else "caption" if said else "label"
            return f"{{{slot}: {_filled(files[:1])}, {what}: {_filled((said or classes)[:1])}}}"
    return ""


def _with_choices(values: Mapping[str, list[Any]], texts: Sequence[str]) -> str:
    """The same for questions with choices, which `prompts` finds by their names, and the place of the right one."""
    right = [
        path
        for path in values
        if re.fullmatch(r"(gold_?)?(label|answer_?(key|index|idx)?|target)", _last(path))
    ]
    there = {_last(path) for path in values}
    listed = any(isinstance(values[p][0], list) for p in values if _last(p) in prompts.CHOICES)
    asked = [p for p in texts if _last(p) not in prompts.LETTERS and p not in right]
    if not right or not asked or not (listed or prompts.lettered(dict.fromkeys(there, ""))):
        return ""
    return f"{{prompt: {_filled(asked[-1:])}, answer: {_filled(right[:1])}}}"


def _values(rows: Sequence[Example]) -> dict[str, list[Any]]:
    """Column, or `column.name` of what stands inside one -> its values that are there, in the file's order."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.fields.items():
            inner = value.items() if isinstance(value, dict) else ()
            for path, one in [(str(name), value), *((f"{name}.{n}", v) for n, v in inner)]:
                if not set(path) & set("{},:") and one not in (None, "", [], {}):
                    found.setdefault(path, []).append(one)
    return found


def _last(path: str) -> str:
    return canonical(path.rpartition(".")[2])


def _is_text(path: str, values: Sequence[Any]) -> bool:
    """Whether a column holds texts that differ, and not where the row is from."""
    words = [v for v in values if isinstance(v, str)]
    if len(words) * 2 <= len(values):
        return False
    if ASKED.fullmatch(_last(path)) or ANSWERED.fullmatch(_last(path)):
        return True
    letters = sum(map(len, words)) / len(words)
    return sum(len(v.split()) for v in words) / len(words) >= WORDS or letters > 20


def _is_class(path: str, values: Sequence[Any]) -> bool:
    """Whether a column's name is one of classes and its values are few, each of several rows."""
    name = _last(path)
    if any(isinstance(value, (list, dict, float)) for value in values):
        return False
    named = meanings.CLASSES.fullmatch(name) or CLASS.fullmatch(name)
    counts = Counter(map(str, values))
    few = len(counts) > 1 and len(counts) * 2 <= len(values)
    binary = len(values) > 4 and counts.keys() <= {"0", "1", "True", "False"} and len(counts) > 1
    return bool((named and (few or len(values) < 5)) or (binary and not APART.fullmatch(name)))


def _first(paths: Sequence[str]) -> Sequence[str]:
    """At most three columns; what a question is about stands before it."""
    asked = [path for path in paths if ASKED.fullmatch(_last(path))]
    about = [path for path in paths if path not in asked]
    return [*about[: 3 - min(len(asked), 2)], *asked[:2]]


def _filled(paths: Sequence[str]) -> str:
    """One column, or a text with several in braces."""
    if len(paths) > 1:
        return f"'{' '.join(f'{{{path}}}' for path in paths)}'"
    return paths[0] if NAME.fullmatch(paths[0]) else repr(paths[0])
