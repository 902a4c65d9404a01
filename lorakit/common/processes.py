"""Which process of which machine this is, so that machines that share a disk tell their files apart."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import lru_cache
from pathlib import Path

import psutil

PART = re.compile(r"\.part([0-9a-f]{8})-([0-9a-f]{6})-(\d+)$")  # see `part`


def _mark(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@lru_cache(maxsize=1)
def machine() -> str:
    """8 digits for this host and its process numbers: two containers of one name count them apart."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        numbering = ""
    return _mark(f"{socket.gethostname()} {numbering}", 8)


@lru_cache(maxsize=1)
def started() -> str:
    """6 digits for the time since this machine was started last; the same ones where that is not known."""
    try:
        return _mark(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), 6)
    except OSError:
        return _mark("", 6)


def part(pid: int | None = None) -> str:
    """How the name of a temporary file ends that this process writes, or the process `pid` of this machine."""
    return f".part{machine()}-{started()}-{pid or os.getpid()}"


def is_left(name: str) -> bool:
    """Whether a temporary file of this name is of a process of this machine that no longer exists."""
    found = PART.search(name)
    if not found or found[1] != machine():
        return False
    return found[2] != started() or not psutil.pid_exists(int(found[3]))
