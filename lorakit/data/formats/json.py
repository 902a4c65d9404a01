"""JSON: an array of objects, an object of arrays, or an object with one such array inside.

[{"instruction": "Name the four START triage colours.", "input": "", "output": "Green, yellow, red, black."}]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import flaw, text
from lorakit.data.formats.jsonl import row_of

SUFFIXES = (".json",)


def read(path: str | Path) -> Iterator[Example | Rejected]:
    """Rows are numbered by their place in the array, from 1."""
    path = Path(path)
    with text(path) as file:
        words = file.read()
    if reason := flaw(words):
        raise LorakitError(f"{path}: {reason}")
    if not words.strip():
        raise LorakitError(f"{path}: the file is empty; put an array of rows there")
    try:
        content = json.loads(words)
    except json.JSONDecodeError as error:
        raise LorakitError(
            f"{path}:{error.lineno}: broken JSON: {error.msg} (column {error.colno}). {_cure(words, error.pos)}"
        ) from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise LorakitError(f"{path}: broken JSON: {error}") from None
    except RecursionError:
        raise LorakitError(f"{path}: broken JSON: nested too deeply") from None
    for number, fields in enumerate(_rows(content, path), 1):
        yield row_of(fields, path.name, number)


def _cure(words: str, place: int) -> str:
    """What to do about JSON that is broken here."""
    before = words[:place].rstrip()
    closes = words[place:].lstrip()[:1] in ("]", "}") or before[-1:] in ("]", "}")
    if before.rstrip("]}").rstrip().endswith(",") and closes:
        return "A comma stands before a closing bracket; remove it"
    return "One object a line? Then name the file .jsonl"


def _rows(content, path: Path) -> list:
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        lists = {k: v for k, v in content.items() if isinstance(v, list)}
        if len(lists) == 1 and any(isinstance(v, dict) for v in next(iter(lists.values()))):
            return next(iter(lists.values()))
        if lists and len(lists) == len(content):
            lengths = {k: len(v) for k, v in lists.items()}
            if len(set(lengths.values())) > 1:
                raise LorakitError(f"{path}: the columns have unequal lengths: {lengths}")
            return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        if len(lists) > 1:
            raise LorakitError(
                f"{path}: several lists inside ({', '.join(lists)}); keep the rows in one"
            )
    raise LorakitError(
        f"{path}: expected an array of rows, found {type(content).__name__} without one"
    )
