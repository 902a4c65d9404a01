"""Plain text: a sample a line, or a paragraph, or what stands between two separators, or the whole file.

The river rose two metres in the night and took the lower camp.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import FIELD, flaw, numbered, text

SUFFIXES = (".txt", ".text", ".md")
SAMPLES = ("auto", "line", "paragraph", "file")
START = 64 * 1024  # characters that `auto` looks at
CHUNK = 1024**2  # characters
END = "<|endoftext|>"  # what GPT-2's data sets put between documents

Pieces = Iterator[tuple[int, str]]  # the line a sample begins on, the sample


def read(
    path: str | Path, *, sample: str = "auto", separator: str | None = None
) -> Iterator[Example | Rejected]:
    """`text`, numbered by the line it begins on. What is blank is passed over.

    `auto` is what stands between `<|endoftext|>` where the first 64,000 characters have it, a paragraph where they
    have empty lines between text, else a line. A `separator` of your own goes before it.
    """
    path = Path(path)
    if sample not in SAMPLES:
        raise LorakitError(
            f"{path}: there is no sample={sample!r}{did_you_mean(sample, SAMPLES)} "
            f"(samples: {', '.join(SAMPLES)})"
        )
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise LorakitError(f"{path}: separator={separator!r} is no text")
    if separator and sample != "auto":
        raise LorakitError(
            f"{path}: sample={sample!r} and separator={separator!r} exclude each other"
        )
    with text(path, newline=None) as file:
        if sample == "auto":
            start = file.read(START)
            file.seek(0)
            separator = separator or (END if END in start else None)
            sample = "paragraph" if "\n\n" in start.strip("\n") else "line"
        for row, words in (
            _between(file, path, separator) if separator else SPLIT[sample](file, path)
        ):
            reason = flaw(words)
            yield (
                Rejected(path.name, row, reason)
                if reason
                else Example({"text": words}, path.name, row)
            )


def _lines(file: TextIO, path: Path) -> Pieces:
    for row, line in numbered(file, path, "set sample: file, or a separator"):
        if line.strip():
            yield row, line.removesuffix("\n")


def _paragraphs(file: TextIO, path: Path) -> Pieces:
    held: list[str] = []
    size = row = 0
    for row, line in numbered(file, path, "set sample: file, or a separator"):
        if line.strip():
            held.append(line)
            size += len(line)
            _limit(size, path, row, "a paragraph")
        elif held:
            yield row - len(held), "".join(held).removesuffix("\n")
            held, size = [], 0
    if held:
        yield row + 1 - len(held), "".join(held).removesuffix("\n")


def _between(file: TextIO, path: Path, separator: str) -> Pieces:
    row, rest = 1, ""
    while chunk := file.read(CHUNK):
        *pieces, rest = (rest + chunk).split(separator)
        for piece in pieces:
            yield from _stripped(row, piece)
            row += piece.count("\n") + separator.count("\n")
        _limit(len(rest), path, row, f"a sample without {separator!r}")
    yield from _stripped(row, rest)


def _stripped(row: int, piece: str) -> Pieces:
    if words := piece.strip():
        yield row + piece[: piece.index(words[0])].count("\n"), words


def _whole(file: TextIO, path: Path) -> Pieces:
    words = file.read()
    if words.strip():
        yield 1, words


def _limit(size: int, path: Path, row: int, what: str) -> None:
    if size > FIELD:
        raise LorakitError(
            f"{path}:{row}: {what} of more than {FIELD // 1024**2} million characters; "
            "set sample: file when the whole file is meant to be one"
        )


SPLIT = {"line": _lines, "paragraph": _paragraphs, "file": _whole}
