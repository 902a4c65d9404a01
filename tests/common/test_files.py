"""Files that are there whole or not at all."""

import errno
import shutil

import pytest
from filelock import FileLock, Timeout

from lorakit.common import files, processes
from lorakit.common.errors import LorakitError


def test_a_folder_that_is_removed_never_stands_half_removed(tmp_path, monkeypatch):
    """Whoever dies in the middle leaves it under another name, which the next sweep removes."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "a").write_text("1")
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: seen.append((path, folder.exists())))
    files.remove(folder)
    assert not folder.exists() and all(not there for _, there in seen[1:])
    (left,) = tmp_path.iterdir()
    assert left.name == f"export.gone{processes.part()}"


def test_a_folder_is_replaced_whole(tmp_path):
    for content in "12":
        with files.atomic_write(tmp_path / "export") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [p.name for p in tmp_path.rglob("*")] == ["export", "2"]


def test_a_full_disk_is_one_line_also_where_a_tree_is_copied(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    message = r"could not be written: \[Errno 28\] No space left on device\. Free"
    with pytest.raises(LorakitError, match=message), files.atomic_write(tmp_path / "rows"):
        raise shutil.Error([("a", "b", str(full)), ("c", "d", str(full))])


def test_waiting_for_a_folder_of_the_cache_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    real = FileLock.acquire

    def busy_for_ten_seconds(self, timeout=None, **options):
        if timeout == 10:
            raise Timeout(str(tmp_path))
        return real(self, timeout=timeout, **options)

    monkeypatch.setattr(FileLock, "acquire", busy_for_ten_seconds)
    assert files.cached("key", lambda part: None) == tmp_path / "key"
    assert "waiting for another process that makes" in capsys.readouterr().err


def test_two_processes_that_write_one_folder_both_succeed(tmp_path, monkeypatch):
    """The other one's folder comes between the removal and the renaming, three times."""
    real, others = files.remove, iter(range(3))

    def removes(path):
        real(path)
        if path.name == "export" and next(others, None) is not None:
            path.mkdir()
            (path / "of the other").write_text("x")

    monkeypatch.setattr(files, "remove", removes)
    with files.atomic_write(tmp_path / "export") as part:
        part.mkdir()
        (part / "mine").write_text("x")
    assert [p.name for p in (tmp_path / "export").iterdir()] == ["mine"]
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
