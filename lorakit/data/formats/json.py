"""JSON: an array of objects, an object of arrays, an object with one such array inside, or objects one after another.

[{"instruction": "Name the four START triage colours.", "input": "", "output": "Green, yellow, red, black."}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import flaw, text
from lorakit.data.formats.jsonl import row_of
from lorakit.data.splits import official, split_of

SUFFIXES = (".json",)
FIRST = re.compile(r'\ufeff?\s*\{\s*"(\w+)"\s*:\s*\[')  # the first key of an object of lists
SPACE = re.compile(r"\s*")


def read(path: str | Path, *, split: str | None = None) -> Iterator[Example | Rejected]:
    """Rows are numbered by their place in the array, from 1. Of an object with official splits `split` names one."""
    path = Path(path)
    for number, fields in enumerate(_rows(_content(path), path, split), 1):
        yield row_of(fields, path.name, number)


def splits(path: str | Path, *, split: str | None = None) -> list[str]:
    """The official splits of an object that holds a list for each."""
    with text(path) as file:
        first = FIRST.match(file.read(4096))
    if split is not None or first is None or split_of(first[1]) is None:
        return []
    content = _content(Path(path))
    named = _split_lists(content) if isinstance(content, dict) else []
    return [name for name in map(split_of, named) if name]


def _content(path: Path) -> Any:
    with text(path) as file:
        words = file.read()
    if reason := flaw(words):
        raise LorakitError(f"{path}: {reason}")
    if not words.strip():
        raise LorakitError(f"{path}: the file is empty; put an array of rows there")
    try:
        return json.loads(words)
    except json.JSONDecodeError as error:
        if (found := _one_after_another(words)) is not None:
            return found
        raise LorakitError(
            f"{path}:{error.lineno}: broken JSON: {error.msg} (column {error.colno}). {_cure(words, error.pos)}"
        ) from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise LorakitError(f"{path}: broken JSON: {error}") from None
    except RecursionError:
        raise LorakitError(f"{path}: broken JSON: nested too deeply") from None


def _one_after_another(words: str) -> list[dict] | None:
    """Objects with nothing but white space between them, as a printer of JSON leaves them; None for anything else."""
    decoder, place, found = json.JSONDecoder(), 0, []
    while (start := SPACE.match(words, place)) and start.end() < len(words):
        try:
            value, place = decoder.raw_decode(words, start.end())
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        found.append(value)
    return found


def _cure(words: str, place: int) -> str:
    """What to do about JSON that is broken here."""
    place += words[place : place + 1] == ","  # where Python 3.13 says that such a comma stands
    before = words[:place].rstrip()
    closes = words[place:].lstrip()[:1] in ("]", "}") or before[-1:] in ("]", "}")
    if before.rstrip("]}").rstrip().endswith(",") and closes:
        return "A comma stands before a closing bracket; remove it"
    return "One object a line? Then name the file .jsonl"


def _rows(content: Any, path: Path, split: str | None) -> list:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise LorakitError(
            f"{path}: expected an array of rows, found {type(content).__name__} without one"
        )
    lists = {k: v for k, v in content.items() if isinstance(v, list)}
    if named := _split_lists(content):
        names = {split_of(name): name for name in named}
        if split not in (None, *names):
            raise LorakitError(f"{path}: has no split {split!r} (splits: {', '.join(named)})")
        return content[names.get(split or "train", named[0])]
    if len(lists) == 1 and any(isinstance(v, dict) for v in next(iter(lists.values()))):
        return next(iter(lists.values()))
    if {"columns", "data"} <= lists.keys() and all(isinstance(row, list) for row in lists["data"]):
        return [dict(zip(lists["columns"], row)) for row in lists["data"]]
    if lists and len(lists) == len(content):
        lengths = {k: len(v) for k, v in lists.items()}
        if len(set(lengths.values())) > 1:
            raise LorakitError(f"{path}: the columns have unequal lengths: {lengths}")
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if len(lists) > 1:
        raise LorakitError(
            f"{path}: several lists inside ({', '.join(lists)}); keep the rows in one"
        )
    return _keyed(content, path)


def _split_lists(content: dict) -> list[str]:
    """The keys of an object that holds a list of objects for each official split, and nothing else."""
    rows = all(
        isinstance(v, list) and all(isinstance(row, dict) for row in v) for v in content.values()
    )
    return [*content] if rows and official(map(split_of, content)) else []


def _keyed(content: dict, path: Path) -> list:
    """The rows of an object of objects: a row by its key, or a column's values by the number of their row (pandas)."""
    inner = [*content.values()]
    if len(inner) > 1 and all(isinstance(v, dict) and v.keys() == inner[0].keys() for v in inner):
        if all(map(str.isdecimal, inner[0])):
            return [{name: values[row] for name, values in content.items()} for row in inner[0]]
        return inner
    raise LorakitError(f"{path}: expected an array of rows, found dict without one")
