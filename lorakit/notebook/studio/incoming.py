"""Files that people have, made into what a run reads: text in Windows-1252, a ZIP of pictures or sounds."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from lorakit.common.errors import LorakitError

TEXT = (".csv", ".tsv", ".json", ".jsonl", ".txt")
MEDIA = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".wav", ".flac", ".ogg", ".mp3")
FILES, BYTES = 20_000, 2_000_000_000  # of a ZIP, unpacked


def usable(path: Path) -> tuple[Path, str]:
    """(a file or folder that a run reads, what was done, "" for nothing). Raises `LorakitError` for what is neither."""
    ending = path.suffix.lower()
    if ending == ".zip":
        return unpacked(path)
    return recoded(path) if ending in TEXT else (path, "")


def recoded(path: Path) -> tuple[Path, str]:
    """A text that is not UTF-8 is read as UTF-16 where it says so, else as Windows-1252, and kept as UTF-8."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
        return path, ""
    except UnicodeDecodeError:
        marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if marked else "cp1252"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return path, ""  # the check names the place
    path.write_text(text, encoding="utf-8", newline="")
    name = "UTF-16" if marked else "Windows-1252"
    return path, f"Read as {name}, the encoding of older Windows programs"


def unpacked(path: Path) -> tuple[Path, str]:
    """The pictures or sounds of a ZIP in a folder beside it, a folder per class where it has folders."""
    target = path.with_suffix("")
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [
                (info, PurePosixPath(info.filename))
                for info in archive.infolist()
                if not info.is_dir()
                and PurePosixPath(info.filename).suffix.lower() in (*MEDIA, *TEXT)
                and not any(map(hidden, PurePosixPath(info.filename).parts))
            ]
            _bounded(path, wanted)
            depth = len(_shared([name for _, name in wanted]))
            for info, name in wanted:
                place = target.joinpath(*name.parts[depth:])
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, open(place, "xb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise LorakitError(f"cannot be unpacked ({error})", where=path.name) from None
    path.unlink()
    files = [p for p in target.rglob("*") if p.is_file()]
    if len(files) == 1 and files[0].suffix.lower() in TEXT:
        return recoded(files[0])
    return target, f"Unpacked {len(files):,} files"


def hidden(part: str) -> bool:
    """Whether a name in an archive is the system's own and no data."""
    return part.startswith("__MACOSX") or (part.startswith(".") and part != "..")


def _bounded(path: Path, wanted: list[tuple[zipfile.ZipInfo, PurePosixPath]]) -> None:
    """Refuses an archive without data, with names that leave its folder, or that would fill the disk."""
    if not wanted:
        raise LorakitError("holds no picture, sound or table", where=path.name)
    if any(
        ".." in name.parts or name.is_absolute() or "\\" in str(name) or ":" in str(name)
        for _, name in wanted
    ):
        raise LorakitError("holds a name that leads out of its folder", where=path.name)
    size = sum(info.file_size for info, _ in wanted)
    if len(wanted) > FILES or size > BYTES or size > 200 * path.stat().st_size + 10_000_000:
        raise LorakitError(
            f"unpacks to {len(wanted):,} files of {size / 1e6:,.0f} MB; the most is {FILES:,} and "
            f"{BYTES / 1e6:,.0f} MB",
            where=path.name,
            cure="send a part of it",
        )


def _shared(names: list[PurePosixPath]) -> tuple[str, ...]:
    """The folders that all files lie in, but for the last one, which may be the only class."""
    shared: list[str] = []
    for parts in zip(*(name.parts[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)
