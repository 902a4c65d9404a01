"""Locks between processes, also on file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

_SUPPORTED: dict[int, bool] = {}  # device number -> whether its file system has flock


def file_lock(path: Path) -> BaseFileLock:
    """A lock on `path`, whose folder exists.

    The operating system's (flock) where the file system has it: it ends with its process, and the file stays behind.
    Elsewhere (some network and FUSE mounts) the existence of `<path>.held` is the lock; filelock removes the file of a
    process of this host that is gone. The names differ, so that a file left by the first kind never blocks the second.
    """
    if _has_flock(path.parent):
        return FileLock(path)
    return SoftFileLock(path.with_name(f"{path.name}.held"))


def _has_flock(folder: Path) -> bool:
    device = os.stat(folder).st_dev
    if device not in _SUPPORTED:
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _SUPPORTED[device] = True
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
                _SUPPORTED[device] = False
    return _SUPPORTED[device]
