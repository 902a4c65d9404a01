"""A ZIP archive with one file of rows in it; a README beside it is passed over.

questions.zip holding questions.csv
"""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.common.files import temporary_folder
from lorakit.data.example import Example, Rejected
from lorakit.data.formats.folder import ABOUT

SUFFIXES = (".zip",)
MOST = 64 * 1024**3  # bytes that may come out of an archive


def read(path: str | Path) -> Iterator[Example | Rejected]:
    """The rows of the one data file inside, numbered as its format numbers them."""
    path = Path(path)
    known = {n: m for n, m in registry.modules("formats").items() if n != "zip" and m.SUFFIXES}
    with temporary_folder() as room:
        try:
            with zipfile.ZipFile(path) as archive:
                member, name = _only(path, archive, known)
                inside = Path(room) / Path(member.filename).name
                with archive.open(member) as source, open(inside, "wb") as target:
                    shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
            raise LorakitError(
                f"{path}: cannot be unpacked ({error}); unpack it yourself"
            ) from None
        for row in known[name].read(inside):
            yield dataclasses.replace(row, file=f"{path.name}/{row.file}")


def _only(path: Path, archive: zipfile.ZipFile, known: dict) -> tuple[zipfile.ZipInfo, str]:
    found = []
    for member in archive.infolist():
        name = Path(member.filename).name.lower()
        if member.is_dir() or name.startswith(".") or member.filename.startswith("__MACOSX/"):
            continue
        if name.split(".")[0] in ABOUT:
            continue
        ending = name.removesuffix(".gz")
        fitting = next((n for n, m in known.items() if ending.endswith(m.SUFFIXES)), None)
        if fitting:
            found.append((member, fitting))
    if len(found) != 1:
        names = ", ".join(m.filename for m, _ in found[:5]) or "none"
        raise LorakitError(
            f"{path}: holds {len(found)} files of rows ({names}), expected one; unpack it and name the folder"
        )
    if found[0][0].file_size > MOST:
        raise LorakitError(f"{path}: unpacks to more than {MOST // 1024**3} GB; unpack it yourself")
    return found[0]
