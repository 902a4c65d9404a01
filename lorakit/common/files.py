"""Atomic file writes, and a cache of folders and small values named by a hash of what they depend on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout
from safetensors import SafetensorError

from lorakit.common.errors import LorakitError
from lorakit.common.locks import file_lock
from lorakit.common.processes import is_left
from lorakit.common.processes import part as part_of

CACHE_BYTES = 10e9  # the cache forgets what was longest unused beyond this


def require_keys(content: Any, *needed: str) -> dict[str, Any]:
    """`content`, where it is a dictionary with these keys. Raises `ValueError` where it is not."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object {{…}}, found {type(content).__name__}")
    if lost := [key for key in needed if key not in content]:
        raise ValueError(f"'{lost[0]}' is missing")
    return content


def remove(path: Path) -> None:
    """A file or a folder; nothing when there is none. Whoever is killed meanwhile leaves no half of a folder."""
    if path.is_dir() and not path.is_symlink():
        gone = path
        if not path.suffix.startswith(".part"):
            gone = path.with_name(f"{path.name}.gone{part_of()}")
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.rename(gone)
        for folder in (gone, path):
            shutil.rmtree(folder, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """In one line; of the many failures of a copied tree the first."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])
    return str(getattr(error, "strerror", None) or error)


def _put(part: Path, path: Path, tries: int = 10) -> None:
    """Renames; a folder takes the place of one that stands there. Two processes that do so at once both succeed."""
    for left in range(tries, 0, -1):
        if part.is_dir():
            remove(path)
        try:
            return os.replace(part, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or left == 1:
                raise


@contextlib.contextmanager
def atomic_write(
    path: Path, cure: str = "name another output_dir, then start again: the run goes on"
) -> Iterator[Path]:
    """Yields a temporary name for a file or folder, and renames it to `path` when the block succeeds.

    A reader of `path` sees the old content or the new, never a part of it. (A folder is absent for an instant.)
    When the block fails, the temporary file is removed and `path` stays as it was.

    Raises:
        LorakitError: the disk refused to write.
    """
    part = path.with_name(f"{path.name}{part_of()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        yield part
        _put(part, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            remove(part)
        kept = f"; {path.name} of before is kept" if path.exists() else ""
        raise LorakitError(
            f"{path}: could not be written: {_reason(error)}{kept}. Free some space or {cure}"
        ) from None
    except BaseException:
        with contextlib.suppress(OSError):
            remove(part)
        raise


def sweep(folder: Path, names: str = "**/*") -> None:
    """Removes the temporary files that `atomic_write` left in processes of this machine that no longer exist."""
    for part in list(folder.glob(f"{names}.part*")):
        if is_left(part.name):
            with contextlib.suppress(OSError):  # another user's
                remove(part)


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder for the time of a `with` block; that of a killed process is removed at the next start."""
    sweep(Path(tempfile.gettempdir()), "lorakit-*")
    return tempfile.TemporaryDirectory(prefix="lorakit-", suffix=part_of())


def copy_tree(source: Path, target: Path) -> None:
    """A folder that shares its files with `source` where the disk allows. Files are replaced here, never rewritten."""
    shutil.copytree(source, target, copy_function=_link)


def link_files(source: Path, target: Path, without: Collection[str]) -> None:
    """The files of one folder in another as `copy_tree` shares them, but for those of these names."""
    for file in source.iterdir():
        if file.is_file() and file.name not in without:
            _link(str(file.resolve()), str(target / file.name))


def _link(one: str, other: str) -> None:
    try:
        os.link(one, other)
    except OSError:
        shutil.copyfile(one, other)


def cache() -> Path:
    """$LORAKIT_CACHE, else ~/.cache/lorakit."""
    return Path(os.environ.get("LORAKIT_CACHE") or Path.home() / ".cache" / "lorakit")


@contextlib.contextmanager
def _patiently(lock: BaseFileLock, folder: Path) -> Iterator[None]:
    """Holds a lock; says so when it takes long to get it."""
    try:
        lock.acquire(timeout=10)
    except Timeout:
        print(f"waiting for another process that makes {folder} …", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache; `build(folder)` fills it when it is not there.

    Of two processes one builds and the other waits; what a killed one left is swept. Raises `LorakitError` when the
    cache cannot be written.
    """
    folder = cache() / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _patiently(file_lock(folder.with_name(f"{key}.lock")), folder):
            if not folder.is_dir():
                sweep(folder.parent)
                with atomic_write(folder, "name another folder in LORAKIT_CACHE") as part:
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


def remembered(kind: str, key: Any, compute: Callable[[], Any]) -> Any:
    """A small JSON value, computed once for `key` (anything that JSON can write) and kept in the cache.

    A cache that cannot be read or written costs only the time to compute the value again.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    path = cache() / kind / f"{name[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    value = compute()
    with contextlib.suppress(OSError, LorakitError), atomic_write(path) as part:
        part.write_text(json.dumps(value), encoding="utf-8")
    return value


def state(path: Path) -> list[Any]:
    """What tells one state of a file from another without reading it: path, bytes, times of change in ns, inode.

    The second time is the disk's own: whoever rewrites a file can set the first one back, not this.
    """
    about = path.stat()
    times = [about.st_mtime_ns, about.st_ino, about.st_ctime_ns]
    return [str(path.resolve()), about.st_size, *times]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read once for each state of the file."""

    def read() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered("hashes", state(path), read)


def _forget(newest: Path) -> None:
    """Removes the entries that were longest unused, beyond `CACHE_BYTES`. Other folders of the cache are left alone."""
    room = CACHE_BYTES
    others = [
        f
        for f in newest.parent.iterdir()
        if f.is_dir()
        and re.fullmatch(r"((reference|before)-)?[0-9a-f]{32}", f.name)
        and f != newest
    ]
    for folder in [newest, *sorted(others, key=lambda f: -f.stat().st_mtime)]:
        room -= sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        if room < 0 and folder != newest:
            remove(folder)
            remove(folder.with_name(f"{folder.name}.lock"))
