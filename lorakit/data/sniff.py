"""What a file holds, whatever its ending says: JSON Lines, a JSON array, a table, or what the ending promises."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data import formats
from lorakit.data.formats import csv

START = 64 * 1024  # characters looked at
LINES = 20
TEXTS = ("txt", "csv", "tsv", "json", "jsonl")
# Names of columns; two of them above a regular table make it one, and no prose.
NAMES = csv.COMMON | {
    *"source target message category class sentence context system query problem solution chosen rejected".split()
}
MARKDOWN = re.compile(r"\s*\|?(\s*:?-{3,}:?\s*\|)+\s*(:?-{3,}:?)?\s*")


def by_content(path: Path, name: str | None) -> str | None:
    """The format that reads this file; `name` is that of its ending, None for an ending that no format has.

    Raises `LorakitError` for a table that is written for people to read.
    """
    if name is not None and name not in TEXTS:
        return name
    try:
        if name is None and (found := _signed(path)):
            return found
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
    if name in ("txt", None) and len(lines) > 2:
        if MARKDOWN.fullmatch(lines[1]) and "|" in lines[0]:
            raise LorakitError("is a table written in Markdown", where=path, cure="save it as CSV")
        return _table(lines) or name
    return name


def _signed(path: Path) -> str | None:
    """The format of a file that is no text, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"ARROW1"):
        return "arrow"
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return "excel" if "xl/workbook.xml" in archive.namelist() else "zip"


def _table(lines: list[str]) -> str | None:
    """`tsv` or `csv`, where these lines are the records of a table with a header, or are parted by tabs throughout."""
    lines = [line + "\n" for line in lines]
    for sign in csv.DELIMITERS:
        _, sample = csv.dialect_of(lines, sign)
        if csv.regularity(sample) < 1 or not sample[0]:
            continue
        header = {cell.strip().lower() for cell in sample[0]}
        if len(header & NAMES) > 1 or (sign == "\t" and len(sample) > 2):
            return "tsv" if sign == "\t" else "csv"
    return None


def _is_object(line: str) -> bool:
    if line.lstrip()[:1] != "{":
        return False
    try:
        return isinstance(json.loads(line.strip().removesuffix(",")), dict)
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
