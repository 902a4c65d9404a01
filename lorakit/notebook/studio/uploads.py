"""Files that come from a browser, and paths that somebody types: nothing outside the project's folders is touched."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from lorakit.common import processes
from lorakit.common.errors import LorakitError
from lorakit.common.text import label
from lorakit.data.example import Example
from lorakit.machine.hardware import DRIVE
from lorakit.models import spec

HUB = re.compile(r"[\w][\w.\-]*/[\w][\w.\-]*")  # owner/name
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet", ".xlsx", ".zip")
LIMIT = 500_000_000  # bytes of a file as it is sent
UNPACKED = 2_000_000_000  # bytes of what is packed in it
CELLS = 200_000_000  # rows times columns of a Parquet file
ENTRIES = 10_000  # files of a folder that are looked at
INPUTS = ("/kaggle/input", DRIVE)  # where data are attached, beside the project's own folder


def plain(name: str) -> str:
    """The same name. Raises `LorakitError` when it is more than the name of one data file."""
    shown = re.sub(r"[^\x20-\x7e]", "?", str(name))[:80]
    if (
        not name
        or re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]', name)
        or name[0] in ". "
    ):
        raise LorakitError(f"upload {shown!r}: this is no plain file name; rename the file")
    if len(name.encode()) > 200:
        raise LorakitError(f"upload {shown!r}: the name is too long; rename the file")
    if not name.lower().removesuffix(".gz").endswith(SUFFIXES):
        raise LorakitError(
            f"upload {shown!r}: expected one of {', '.join(SUFFIXES)}, each also as .gz"
        )
    return name


class Incoming:
    """An upload as it comes: its bytes go to the disk, unnamed until all of it is there and sound.

    Every step raises `LorakitError` for a name, a size or a content that is refused.
    """

    def __init__(self, name: str, folder: Path, declared: int | None = None):
        self.name, self.folder, self.declared, self.size = plain(name), folder, declared, 0
        self._limit(declared or 0)
        if folder.is_symlink():
            raise LorakitError(f"{folder}: is a link to another folder; remove it")
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=processes.part(), dir=folder)
        self.part, self._file = Path(part), os.fdopen(handle, "wb")

    def add(self, piece: bytes | memoryview) -> None:
        self.size += len(piece)
        self._limit(self.size)
        self._file.write(piece)

    def keep(self) -> Path:
        """Its place, never over another file: a second `rows.csv` becomes `rows-2.csv`."""
        self._file.close()
        if self.declared not in (None, self.size):
            raise LorakitError(
                f"upload {self.name}: {self.size:,} of {self.declared:,} bytes came; send it again"
            )
        if not self.size:
            raise LorakitError(f"upload {self.name}: is empty")
        sized(self.name, self.part)
        return _named(self.part, self.folder, self.name)

    def close(self) -> None:
        """Leaves nothing of it but what was kept."""
        self._file.close()
        self.part.unlink(missing_ok=True)

    def _limit(self, size: int) -> None:
        if size > LIMIT:
            raise LorakitError(
                f"upload {self.name}: {size / 1e6:,.0f} MB, and {LIMIT / 1e6:,.0f} MB is the most; "
                "put the file beside the notebook and name its path"
            )


def _named(part: Path, folder: Path, name: str) -> Path:
    """Gives the file its name, or the first that is free: who comes second at the same instant gets the next."""
    stem, dot, ending = name.partition(".")
    number = 0
    while True:
        number += 1
        target = folder / (name if number == 1 else f"{stem}-{number}{dot}{ending}")
        try:
            os.link(part, target)  # fails when the name is taken, also by a dangling link
        except FileExistsError:
            continue
        except OSError:  # a disk without hard links, e.g. Google Drive
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                continue
            os.replace(part, target)
        return target


def sized(name: str, path: Path) -> None:
    """Raises `LorakitError` for a small file that would become a huge one, or that is not what its name says."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        if name.lower().endswith(".gz"):
            inner = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            unpack(name, file, inner)
            file, name = inner, name[:-3]
        if name.lower().endswith(".parquet"):
            _parquet(name, file)
        elif file.read(4) == b"PK\x03\x04" and not name.lower().endswith((".xlsx", ".zip")):
            raise LorakitError(
                f"upload {name}: is a ZIP archive; name it .zip, or .xlsx where Excel wrote it"
            )


def _parquet(name: str, file: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    try:
        about = pq.ParquetFile(file).metadata
    except Exception as error:  # of Arrow
        raise LorakitError(
            f"upload {name}: cannot be read as Parquet ({str(error).splitlines()[0]})"
        ) from None
    size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if size > UNPACKED or about.num_rows * about.num_columns > CELLS:
        raise LorakitError(
            f"upload {name}: holds {about.num_rows:,} rows of {about.num_columns} columns, "
            f"{size / 1e9:.1f} GB unpacked; send a part of it"
        )


def unpack(name: str, packed: IO[bytes], into: IO[bytes]) -> None:
    """Writes out what is inside gzip, `UNPACKED` bytes at most."""
    small, size = os.fstat(packed.fileno()).st_size, 0
    try:
        with gzip.open(packed) as file:
            while piece := file.read(1 << 20):
                size += len(piece)
                if size > min(UNPACKED, 200 * small + 10_000_000):
                    raise LorakitError(
                        f"upload {name}: unpacks to more than {size / 1e6:,.0f} MB from "
                        f"{small / 1e6:.1f} MB; unpack it yourself and send a part"
                    )
                into.write(piece)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LorakitError(f"upload {name}: cannot be unpacked as gzip ({error})") from None
    into.seek(0)


def roots(*folders: str | os.PathLike) -> list[Path]:
    """The folders that may be read: the project's, and those where Colab and Kaggle attach data."""
    return [Path(f).resolve() for f in (*folders, *INPUTS) if Path(f).is_dir()]


def inside(path: str | os.PathLike, allowed: Sequence[Path]) -> Path:
    """The path itself, links followed. Raises `LorakitError` unless it lies in one of the folders."""
    text = os.fspath(path)
    if "\0" in text or not text.strip():
        raise LorakitError("name a file or a folder")
    try:
        found = Path(text).resolve(strict=True)
    except (OSError, RuntimeError):
        raise LorakitError(f"{text}: no such file or folder") from None
    home = next((root for root in allowed if found.is_relative_to(root)), None)
    if home is None:
        raise LorakitError(
            f"{text}: lies outside of the project's folders ({', '.join(map(str, allowed))}); copy it "
            "there, or upload it"
        )
    if any(part.startswith(".") for part in found.relative_to(home).parts):
        raise LorakitError(f"{text}: is hidden; name another file")
    if not found.is_file() and not found.is_dir():
        raise LorakitError(f"{text}: is no file and no folder")
    for entry in itertools.islice(found.rglob("*"), ENTRIES) if found.is_dir() else ():
        if entry.is_symlink() and not any(entry.resolve().is_relative_to(root) for root in allowed):
            raise LorakitError(f"{entry}: is a link out of the project's folders; remove it")
    return found


def known(folders: Sequence[Path]) -> list[str]:
    """Data files to choose from: those of these folders and of the folders in them."""
    found = [
        p
        for folder in folders
        if folder.is_dir()
        for pattern in ("*", "*/*")
        for p in itertools.islice(folder.glob(pattern), ENTRIES)
        if p.is_file()
        and not p.is_symlink()
        and p.name.lower().removesuffix(".gz").endswith(SUFFIXES)
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    return sorted(map(str, found))[:500]


def first_rows(rows: Sequence[Example], count: int = 5) -> tuple[list[str], list[list[str]]]:
    """(columns, cells) of the first rows, each cell cut to what one looks at."""
    rows = rows[:count]
    columns = list(dict.fromkeys(name for row in rows for name in row.fields))
    return list(map(str, columns)), [[_cell(row.fields.get(c)) for c in columns] for row in rows]


def _cell(value: Any) -> str:
    """A value as one reads it: a chat as its turns, not as Python writes a list."""
    if value is None or isinstance(value, str):
        return (value or "")[:200]
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        turns = [
            (t.get("role", t.get("from", "")), t.get("content", t.get("value"))) for t in value
        ]
        return " ".join(f"{who}: {label(_cell(what), 70)}" for who, what in turns)
    return json.dumps(value, ensure_ascii=False, default=str)[:200]


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    )


def elsewhere(name: str, value: str) -> bool:
    """Whether the value of a setting stands for something that is no file here: a known model, an id of the hub."""
    if name == "model" and value in spec.known():
        return True
    if name in ("media_folder", "chat_template"):
        return False
    return bool(HUB.fullmatch(value)) and not os.path.lexists(value) and ".." not in value
