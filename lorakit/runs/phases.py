"""Where a run stands, from its files alone: loading, answering before, training, answering after, proof."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.common.errors import LorakitError
from lorakit.runs.folder import Folder

TITLES = (
    "load data and model",
    "answer the test rows before training",
    "train",
    "answer the test rows after training",
    "prove what was saved",
)
TRAINING = 2  # place in `TITLES`


@dataclass(frozen=True)
class Phase:
    """One of `TITLES`, by its place; `len(TITLES)` when the run is done."""

    place: int
    updates: int = 0  # done
    planned: int = 0  # in all; 0: not known yet

    @property
    def title(self) -> str:
        """What is being done."""
        return "done" if self.place >= len(TITLES) else TITLES[self.place]

    @property
    def share(self) -> float:
        """Of the training that is done, 0 to 1."""
        return min(1.0, self.updates / self.planned) if self.planned else 0.0

    def __str__(self) -> str:
        """`3/5 train`"""
        if self.place >= len(TITLES):
            return "done"
        return f"{self.place + 1}/{len(TITLES)} {self.title}"


def phase(folder: Folder, updates: int) -> Phase:
    """The phase of a run whose history has this many updates. What cannot be read counts as not begun."""
    try:
        record = folder.record
    except LorakitError:
        return Phase(0)
    planned = int(record.get("updates_planned") or 0)
    ended = bool(planned) and updates >= planned
    if record["status"] == "done":
        place = len(TITLES)
    elif ended or record.get("updates"):  # noted when training ends, also early
        place = 4 if folder.outcome("after").exists() else 3
    elif updates or folder.outcome("before").exists():
        place = TRAINING
    else:
        place = 1 if planned else 0
    return Phase(place, updates, planned)


def spoken(seconds: float) -> str:
    """`40 s`, `12 min`, `10 h 18 min`"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
