"""Turns on the cards of this machine. The queue is a folder: a file for each that waits, a lock for each card.

Nobody serves the queue: each that waits looks for itself whether it is first. Locks are the operating system's, they go
with their process; so one that crashes, is killed or loses its page frees its card and its place, and stops nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, Timeout

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, cache, sweep
from lorakit.common.locks import file_lock
from lorakit.common.processes import machine
from lorakit.machine.hardware import cards as cards_here

LOOK = 0.3  # seconds between two looks at the queue


def queue() -> Path:
    """One for the machine, whatever the folders of the runs: its cards are shared, those of another are not."""
    return cache() / f"queue-{machine()}"


@dataclass(frozen=True)
class Waiting:
    """Somebody in the queue: for what (the folder of a run), as which process."""

    ticket: Path
    what: str
    pid: int


def waiting(folder: Path | None = None) -> list[Waiting]:
    """Who waits, the first first. Tickets of processes that are gone are removed."""
    found = []
    for ticket in sorted((folder or queue()).glob("*.ticket")):
        try:
            with _lock(ticket).acquire(timeout=0):
                ticket.unlink(missing_ok=True)
            Path(f"{ticket}.lock").unlink(missing_ok=True)
        except Timeout:
            with contextlib.suppress(OSError, ValueError, KeyError):
                said = json.loads(ticket.read_text(encoding="utf-8"))
                found.append(Waiting(ticket, said["what"], said["pid"]))
        except OSError:
            continue
    return found


@contextlib.contextmanager
def turn(what: str, slots: int, wanted: int = 1, folder: Path | None = None) -> Iterator[list[int]]:
    """Waits until `wanted` of `slots` cards are free and all who came before have theirs; yields their numbers.

    Raises `LorakitError` when the ticket is taken away meanwhile: somebody called it off.
    """
    folder, wanted = folder or queue(), min(wanted, slots)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        ticket = folder / f"{time.time_ns():020d}-{os.getpid()}.ticket"
        mine = _lock(ticket)
        mine.acquire(timeout=1)
        with atomic_write(ticket) as part:
            part.write_text(json.dumps({"what": what, "pid": os.getpid()}), encoding="utf-8")
    except OSError as error:
        raise LorakitError(
            f"{folder}: the queue cannot be written ({error.strerror}); name another folder in the "
            "environment variable LORAKIT_CACHE"
        ) from None
    with contextlib.ExitStack() as held:
        try:
            while not (cards := _taken(folder, ticket, slots, wanted)):
                if not ticket.exists():
                    raise LorakitError(f"{what}: was called off while it waited for its turn")
                time.sleep(LOOK)
            for lock in cards.values():
                held.callback(lock.release)
        finally:
            ticket.unlink(missing_ok=True)
            mine.release()
            Path(f"{ticket}.lock").unlink(missing_ok=True)
        yield list(cards)


def _sweep(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote its ticket."""
    sweep(folder)
    for lock in folder.glob("*.ticket.lock"):
        if not lock.with_suffix("").exists():
            with contextlib.suppress(Timeout, OSError), file_lock(lock).acquire(timeout=0):
                lock.unlink(missing_ok=True)


@contextlib.contextmanager
def on_cards(what: str, wanted: int | None = None) -> Iterator[None]:
    """A turn on so many cards of this machine (None: on all), which alone are visible then; without cards, on the
    CPU."""
    there = len(cards_here())
    with turn(what, max(1, there), wanted or max(1, there)) as numbers:
        if there:
            os.environ["CUDA_VISIBLE_DEVICES"] = seen(
                numbers, os.environ.get("CUDA_VISIBLE_DEVICES")
            )
        yield


def place_of(what: str) -> Waiting | None:
    """The ticket of a run that waits."""
    return next((w for w in waiting() if w.what == what), None) if queue().is_dir() else None


def _taken(folder: Path, ticket: Path, slots: int, wanted: int) -> dict[int, BaseFileLock]:
    """The locks of as many cards as are wanted, by their number; {} where it is not our turn, or too few are free."""
    first = next((w.ticket for w in waiting(folder)), None)
    if first != ticket:
        return {}
    held: dict[int, BaseFileLock] = {}
    for number in range(slots):
        lock = _lock(folder / f"card-{number}")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            held[number] = lock
        if len(held) == wanted:
            return held
    for lock in held.values():
        lock.release()
    return {}


def busy(folder: Path | None = None) -> list[int]:
    """The cards that somebody has."""
    found = []
    for card in sorted(
        {p.with_name(p.name.split(".")[0]) for p in (folder or queue()).glob("card-*.lock*")}
    ):
        try:
            with _lock(card).acquire(timeout=0):
                pass
        except Timeout:
            found.append(int(card.name.rpartition("-")[2]))
    return found


def _lock(path: Path) -> BaseFileLock:
    return file_lock(path.with_name(f"{path.name}.lock"))


def seen(cards: list[int], visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for these cards, counted among those that were visible before."""
    names = visible.split(",") if visible else []
    return ",".join(names[c] if c < len(names) else str(c) for c in cards)
