"""Chat templates are programs of whoever made the model: each rendering ends in time, whatever its turns are."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from lorakit.common.errors import LorakitError

SECONDS = 5.0  # that one conversation may take; a usual one takes 0.0003
LOOKS = 10  # of the watch in this time: it counts looks, so that a suspended process is not taken for a slow one
MORE_BYTES = 4 * 2**30  # that a process may need beyond what it holds while it encodes rows


class _Interrupted(BaseException):
    """Raised in a thread whose template takes too long; no `except Exception` on its way holds it."""


_rendering: dict[int, int] = {}  # thread -> number of what it renders now
_numbers = itertools.count()
_watched = 0  # the process whose watch runs: a forked one has none


def _watch() -> None:
    seen: dict[int, tuple[int, int]] = {}  # thread -> (number of what it renders, looks)
    while True:
        time.sleep(SECONDS / LOOKS)
        for thread, number in list(_rendering.items()):
            before, looks = seen.get(thread, (number, 0))
            seen[thread] = (number, looks + 1 if before == number else 1)
            # Whoever takes the entry out decides: this watch, or the thread when it is done.
            if seen[thread][1] > LOOKS and _rendering.pop(thread, None) == number:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(_Interrupted)
                )


def rendered(reader: Any, messages: Sequence[Any], where: str = "", **options: Any) -> Any:
    """`reader.apply_chat_template`, interrupted after `SECONDS`.

    Args:
        reader: tokenizer or processor.
        where: of the turns, for the message.

    Raises:
        LorakitError: it takes too long, or more memory than there is.
    """
    global _watched
    if _watched != os.getpid():
        _watched = os.getpid()
        _rendering.clear()
        threading.Thread(target=_watch, daemon=True, name="lorakit-templates").start()
    thread = threading.get_ident()
    _rendering[thread] = next(_numbers)
    try:
        try:
            return reader.apply_chat_template(messages, **{"tokenize": False, **options})
        finally:
            if _rendering.pop(thread, None) is None and sys.exc_info()[0] is not _Interrupted:
                time.sleep(SECONDS)  # it was just interrupted: let the exception arrive here
    except _Interrupted:
        problem = f"does not end within {SECONDS:g} s"
    except MemoryError:
        problem = "takes more memory than there is"
    raise LorakitError(
        f"the chat template of this model {problem} on these turns",
        setting="model",
        where=where or None,
        cure="take the model from its author, or set chat_template to a file of your own",
    )


_limited: list[tuple[int, int]] = []  # the limits of before, by who is within
_lock = threading.Lock()


@contextmanager
def limited_memory() -> Iterator[None]:
    """Within it a template that makes a text of gigabytes fails. Linux alone; elsewhere there is no such limit.

    The limit is the process's: of several threads the first sets it and the last lifts it.
    """
    if sys.platform != "linux":
        yield
        return
    with _lock:
        before = _limited[0] if _limited else resource.getrlimit(resource.RLIMIT_DATA)
        if not _limited:
            most = psutil.Process().memory_info().data + MORE_BYTES
            most = most if before[0] == resource.RLIM_INFINITY else min(most, before[0])
            resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
        _limited.append(before)
    try:
        yield
    finally:
        with _lock:
            if _limited.pop() and not _limited:
                resource.setrlimit(resource.RLIMIT_DATA, before)
