"""Temporary files on a disk that machines share: each sweeps what its own dead processes left, and nothing else."""

import os

import pytest

from lorakit.common import processes
from lorakit.common.files import atomic_write, sweep

DEAD = 2**22 + 1  # above the largest process id of Linux


def name(host=None, start=None, pid=DEAD):
    return f"x.part{host or processes.machine()}-{start or processes.started()}-{pid}"


@pytest.mark.parametrize(
    ("written", "stays"),
    [
        (name(), False),
        (name(pid=os.getpid()), True),
        (name(start="000000", pid=os.getpid()), False),  # this machine was restarted since
        (name(host="00000000"), True),
        (name(host="00000000", start="000000"), True),
        (f"x.part{DEAD}", True),  # nobody knows whose
        ("x.part", True),
        (name() + ".txt", True),
    ],
    ids="gone runs restarted elsewhere elsewhere_restarted unknown no_number no_part".split(),
)
def test_what_is_swept(written, stays, tmp_path):
    (tmp_path / written).mkdir()
    (tmp_path / written / "half").write_text("half")
    sweep(tmp_path)
    assert (tmp_path / written).exists() is stays


def test_what_another_machine_is_writing_stays(tmp_path, monkeypatch):
    with atomic_write(tmp_path / "a") as part:
        part.write_text("half")
        monkeypatch.setattr(processes, "machine", lambda: "00000000")
        monkeypatch.setattr(processes.psutil, "pid_exists", lambda pid: False)
        sweep(tmp_path)
        assert part.read_text() == "half"


def test_hosts_and_containers_differ(monkeypatch):
    mine = processes.machine.__wrapped__()
    assert mine == processes.machine()
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "another")
    other = processes.machine.__wrapped__()
    monkeypatch.setattr(processes.os, "readlink", lambda path: "pid:[1]")
    assert len({mine, other, processes.machine.__wrapped__()}) == 3
