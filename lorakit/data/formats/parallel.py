"""Parallel text (https://opus.nlpl.eu): two files, of which line n of one is the translation of line n of the other.

Where is the nearest well?
Où est le puits le plus proche ?
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import flaw, numbered, text

SUFFIXES = ()


def read(path: str | Path, *, target: str) -> Iterator[Example | Rejected]:
    """`source` and `target`, numbered by line. `target` is a path, or a name beside the source."""
    source, other = files(path, target=target)
    pairs = zip_longest(_lines(source), _lines(other), fillvalue=(0, ""))
    for (row, left), (twin, right) in pairs:
        if row != twin:
            both = [max(row, twin) - 1, max(row, twin) + sum(1 for _ in pairs)]
            lines = both if twin else both[::-1]
            raise LorakitError(
                f"{source}: has {lines[0]} lines and {other.name} {lines[1]}; line n of one must be the "
                "translation of line n of the other"
            )
        yield _pair(source.name, row, left, right)


def files(path: str | Path, *, target: str) -> list[Path]:
    """The source and the target."""
    source = Path(path)
    if not isinstance(target, str) or not target:
        raise LorakitError(f"{source}: target={target!r} is not the name of a file")
    other = next((p for p in (Path(target), source.parent / target) if p.is_file()), None)
    if other is None:
        raise LorakitError(f"{target}: no such file, neither in {Path.cwd()} nor beside {source}")
    if other.resolve() == source.resolve():
        raise LorakitError(
            f"{source}: is both source and target; name the other language's file as target"
        )
    return [source, other]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with text(path) as file:
        yield from numbered(file, path, "is it parallel text, a sentence a line?")


def _pair(file: str, row: int, source: str, target: str) -> Example | Rejected:
    fields = {"source": source.rstrip("\r\n"), "target": target.rstrip("\r\n")}
    for side, words in fields.items():
        if not words.strip():
            return Rejected(file, row, f"the {side} is empty")
        if reason := flaw(words):
            return Rejected(file, row, f"the {side} is {reason}")
    return Example(fields, file, row)
