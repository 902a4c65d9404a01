"""Locks where the file system has none, and beside lock files that another file system left."""

import errno
import fcntl
import subprocess
import sys

import pytest
from filelock import Timeout

import lorakit
from lorakit.common import files, locks
from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import child_environment
from lorakit.training import gpu_queue


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_SUPPORTED", {})


@pytest.fixture
def used(tmp_path, monkeypatch):
    """A folder and a cache that were used where flock works."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    with lorakit.Folder(tmp_path / "run").locked():
        pass
    files.cached("key", lambda folder: None)
    return tmp_path


def test_a_lock_file_left_by_flock_blocks_nobody(used, no_flock):
    folder = lorakit.Folder(used / "run")
    assert not folder.busy
    with folder.locked():
        pass
    files.cached("key", lambda folder: None)
    files.cached("other", lambda folder: None)


def test_without_flock_a_second_writer_is_refused(used, no_flock):
    first, second = lorakit.Folder(used / "run"), lorakit.Folder(used / "run")
    with first.locked():
        assert second.busy
        with pytest.raises(LorakitError, match="another run is writing here"), second.locked():
            pass
    assert not second.busy


def test_without_flock_the_lock_of_a_killed_process_is_broken(tmp_path, no_flock):
    code = (
        "import os, signal, sys; from pathlib import Path; from lorakit.common import locks; "
        "locks._has_flock = lambda folder: False; "
        "lock = locks.file_lock(Path(sys.argv[1])); lock.acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], env=child_environment())
    assert (tmp_path / "a.held").exists()
    try:
        with locks.file_lock(tmp_path / "a").acquire(timeout=5):
            pass
    except Timeout:
        pytest.fail("the lock of a process that is gone was not broken")


def test_the_queue_on_cards_works_beside_the_locks_that_flock_left(tmp_path, no_flock):
    (tmp_path / "card-0.lock").touch()
    with gpu_queue.turn("a", 1, folder=tmp_path) as cards:
        assert cards == [0] and gpu_queue.busy(tmp_path) == [0]
    assert gpu_queue.busy(tmp_path) == [] and gpu_queue.waiting(tmp_path) == []
