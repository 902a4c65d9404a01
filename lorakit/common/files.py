"""Files that are whole or not there, and a cache of folders named by what they hold."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from safetensors import SafetensorError

from lorakit.common.errors import LorakitError

CACHE_BYTES = 10e9  # the cache forgets what was longest unused beyond this


def sound(content: Any, *needed: str) -> dict[str, Any]:
    """The same object, read from a file. Raises `ValueError` when it is none, or lacks one of these keys."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object {{…}}, found {type(content).__name__}")
    if lost := [key for key in needed if key not in content]:
        raise ValueError(f"'{lost[0]}' is missing")
    return content


def remove(path: Path) -> None:
    """A file or a folder; nothing when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(
    path: Path, cure: str = "name another output_dir, then start again: the run goes on"
) -> Iterator[Path]:
    """A name to write a file or a folder under; it becomes `path` when the block ends, and nothing when it fails.

    Under `path` stands the old or the new, whole, at any instant (of a folder: or nothing, for an instant).
    Raises `LorakitError` when the disk refuses.
    """
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        yield part
        if part.is_dir():
            remove(path)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            remove(part)
        kept = f"; {path.name} of before is kept" if path.exists() else ""
        raise LorakitError(
            f"{path}: could not be written: {getattr(error, 'strerror', None) or error}{kept}. Free "
            f"some space or {cure}"
        ) from None
    except BaseException:
        with contextlib.suppress(OSError):
            remove(part)
        raise


def sweep(folder: Path, names: str = "**/*") -> None:
    """Removes what processes that are gone left half written, of files and folders named so."""
    for part in list(folder.glob(f"{names}.part*")):
        pid = part.name.rpartition(".part")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):  # another user's
                remove(part)


def copy_tree(source: Path, target: Path) -> None:
    """A folder that shares its files with `source` where the disk allows. Files are replaced here, never rewritten."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)

    shutil.copytree(source, target, copy_function=link)


def cache() -> Path:
    """$LORAKIT_CACHE, else ~/.cache/lorakit."""
    return Path(os.environ.get("LORAKIT_CACHE") or Path.home() / ".cache" / "lorakit")


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache; `build(folder)` fills it when it is not there.

    Of two processes one builds and the other waits; what a killed one left is swept. Raises `LorakitError` when the
    cache cannot be written.
    """
    folder = cache() / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{key}.lock")):
            if not folder.is_dir():
                sweep(folder.parent)
                with whole(folder, "name another folder in LORAKIT_CACHE") as part:
                    part.mkdir()
                    build(part)
                _forget(folder)
            os.utime(folder)
    except OSError as error:
        raise LorakitError(
            f"{folder.parent}: the cache cannot be written ({error.strerror}); name another folder in "
            "the environment variable LORAKIT_CACHE"
        ) from None
    return folder


def _forget(newest: Path) -> None:
    room = CACHE_BYTES
    others = [
        f for f in newest.parent.iterdir() if f.is_dir() and ".part" not in f.name and f != newest
    ]
    for folder in [newest, *sorted(others, key=lambda f: -f.stat().st_mtime)]:
        room -= sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        if room < 0 and folder != newest:
            remove(folder)
            remove(folder.with_name(f"{folder.name}.lock"))
