"""What a run is doing, and the one place where that is derived."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """As `record.json` names it. Equal to its own text: `status == "done"` holds."""

    QUEUED = "queued"  # waits for a card, or was never started
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # its process is gone; starting again resumes it
    STOPPED = "stopped"  # ended on request, with a checkpoint
    FAILED = "failed"
    DONE = "done"

    @property
    def ended(self) -> bool:
        """Whether nothing goes on any more."""
        return self not in (Status.QUEUED, Status.RUNNING)


def derive(
    recorded: str | None,
    *,
    locked: bool,
    waiting: bool = False,
    child: bool = False,
    exit_code: int | None = None,
) -> Status:
    """The status of a run from what can be seen of it.

    Args:
        recorded: the status in `record.json`; None: there is no record.
        locked: whether a process holds the lock of the folder.
        waiting: whether it has a ticket in the queue for cards.
        child: whether the caller has started the process of the run itself.
        exit_code: of that process; None while it runs.
    """
    try:
        status = Status(recorded or Status.QUEUED)
    except ValueError:
        status = Status.FAILED
    if status is Status.RUNNING and not locked:
        status = Status.INTERRUPTED
    if waiting:
        return Status.QUEUED
    if not child:
        return status
    if exit_code is None:  # the record may be that of an earlier run
        return Status.RUNNING if status.ended else status
    if exit_code > 0:  # also where the folder keeps a run that this one was refused for
        return Status.FAILED
    return Status.INTERRUPTED if status is Status.QUEUED or exit_code < 0 else status
