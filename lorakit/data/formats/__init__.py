"""Files a user may have, one module each.

Contract: `SUFFIXES`, the endings it reads (each may be followed by `.gz`), or none; `read(path, **options)` yields
`Example` for a row that could be read and `Rejected` for one that could not, in the order of the file, one row in
memory at a time. A file unusable as a whole raises `LorakitError`. Options are keyword arguments with defaults, set by
`format: {csv: {delimiter: ";"}}`. Optional: `takes(path)`, whether it reads what no ending tells (a folder, a hub id);
`files(path, **options)`, the files that hold the content, when not the path itself; `identity(path, **options)`, a name
of the content, when there are no files to hash; with an option `split`, `splits(path, **options)`, the official splits,
and `passed(path, **options)`, what belongs to none of them and is not read; `classes(path, **options)`, the names of
the classes of each column that holds some, in their order.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from lorakit.common.errors import LorakitError

FIELD = (
    32 * 1024**2
)  # bytes of one row at most: a quote or a bracket that is never closed must not swallow a file
# First bytes of what people rename: https://en.wikipedia.org/wiki/List_of_file_signatures
SIGNS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a sound or image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive or an Office document (save a table as CSV)",
    b"\xd0\xcf\x11\xe0": "an old Office document (save a table as CSV)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"OggS": "a sound",
    b"fLaC": "a sound",
    b"ID3\x03": "a sound",
    b"ID3\x04": "a sound",
    b"GGUF": "a GGUF model",
    b"\x80\x04\x95": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull fetches the file)",
}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # four bytes before two


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked when it is gzip. What fails while reading raises `LorakitError`."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise LorakitError(f"{path}: is a device or a pipe, expected a file")
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else contextlib.nullcontext(raw) as file:
                yield cast(BinaryIO, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise LorakitError(
            f"{path}: the gzip file is cut or damaged ({error}); download or write it again"
        ) from None
    except IsADirectoryError:
        raise LorakitError(f"{path}: is a folder, expected a file") from None
    except OSError as error:
        raise LorakitError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextlib.contextmanager
def text(path: str | Path, newline: str | None = "\n") -> Iterator[TextIO]:
    """The characters of a text file: UTF-8, or what its byte-order mark says.

    Bytes that are not UTF-8 come as lone surrogates, so that one bad row costs one row: see `flaw`. Raises
    `LorakitError` when the file is no text at all.
    """
    with opened(path) as file:
        start = file.read(32)
        file.seek(0)
        if what := sign(start):
            raise LorakitError(f"{path}: is {what}, not text, whatever its name says")
        encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")
        if encoding == "utf-8" and (start[1:16:2].count(0) > 4 or start[:16:2].count(0) > 4):
            raise LorakitError(
                f"{path}: looks like UTF-16 without its mark; save the file as UTF-8"
            )
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        try:
            yield io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)
        except UnicodeDecodeError as error:
            raise LorakitError(
                f"{path}: begins with the mark of {encoding.upper()} and is not "
                f"({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from None


def sign(start: bytes) -> str:
    """What a file is that begins with these bytes, "" when they do not tell."""
    return next((what for first, what in SIGNS.items() if start.startswith(first)), "")


def numbered(file: TextIO, path: str | Path, advice: str) -> Iterator[tuple[int, str]]:
    """(number, line with its end) of each line. Raises `LorakitError` for a line of more than `FIELD` characters."""
    number = 0
    while line := file.readline(FIELD):
        number += 1
        if len(line) == FIELD and not line.endswith(("\n", "\r")):
            raise LorakitError(
                f"{path}:{number}: a line of more than {FIELD // 1024**2} million characters; {advice}"
            )
        yield number, line


def flaw(words: str) -> str:
    """Why this text of a file is no text: "" when it is sound."""
    if words.isascii():
        return ""
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as error:
        try:
            raw = words.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return f"half a character (a lone surrogate) at character {error.start + 1}; write the file again"
        near = raw[max(0, error.start - 12) : error.start + 12].decode("cp1252", "replace").strip()
        return (
            f"not UTF-8 at character {error.start + 1} (Windows-1252 would read …{near}…); "
            "save the file as UTF-8"
        )
    return ""
