"""What a text file holds, whatever its ending says: JSON Lines, a JSON array, or what the ending promises."""

from __future__ import annotations

import json
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data import formats

START = 64 * 1024  # characters looked at
LINES = 20
TEXTS = ("txt", "csv", "tsv", "json", "jsonl")


def by_content(path: Path, name: str) -> str:
    """The format that reads this file; `name` is that of its ending."""
    if name not in TEXTS:
        return name
    try:
        with formats.text(path) as file:
            start = file.read(START)
    except (LorakitError, UnicodeError):
        return name  # its reader says what is wrong
    whole = len(start) < START
    lines = [line for line in start.splitlines() if line.strip()]
    if lines and not whole and len(lines) > 1:
        lines.pop()  # perhaps cut
    if name != "jsonl" and len(lines) > 1 and all(map(_is_object, lines[:LINES])):
        return "jsonl"
    if name != "json" and start.lstrip()[:1] == "[" and _is_array(start, whole, lines):
        return "json"
    return name


def _is_object(line: str) -> bool:
    if line.lstrip()[:1] != "{":
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_array(start: str, whole: bool, lines: list[str]) -> bool:
    """Whether this begins an array of objects, rather than a line that holds one by itself."""
    if start.lstrip()[1:].lstrip()[:1] != "{":
        return False
    try:
        json.loads(lines[0])
    except ValueError:
        return True  # goes on behind the first line
    except RecursionError:
        return False
    return whole and len(lines) == 1 and not _turns(lines[0])


def _turns(line: str) -> bool:
    return all(
        {"role", "from"} & turn.keys() for turn in json.loads(line) if isinstance(turn, dict)
    )
