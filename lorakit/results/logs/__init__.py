"""Logs of training, whoever wrote them: a file of this folder reads one kind, `claims(path)` says which."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.results.plots import smooth, span
from lorakit.runs.folder import Folder

# What others call our settings. Hugging Face's TrainingArguments are in most logs.
KNOWN_AS = {
    "num_train_epochs": "epochs",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
    **{
        n: n
        for n in (
            "learning_rate",
            "weight_decay",
            "max_grad_norm",
            "warmup_ratio",
            "warmup_steps",
            "seed",
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
        )
    },
}
AXES = {"update": "update", "tokens": "tokens so far", "seconds": "seconds of training"}


@dataclass
class Log:
    """The curves of one training. `updates` are dicts with `update` and `loss`; `tokens` and `seconds` (both so far)
    where the log has them. A validation series is a list of (update, loss)."""

    name: str
    kind: str
    updates: list[dict[str, float]]
    validations: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counted: str = "update"  # what `update` counts: some logs know only epochs
    path: Path | None = None

    def along(self, axis: str) -> tuple[list[float], list[float]]:
        """(places, losses) of the training rows along `update`, `tokens` or `seconds`; empty where not in the log."""
        lines = [u for u in self.updates if axis in u]
        return [u[axis] for u in lines], [u["loss"] for u in lines]

    @property
    def gap(self) -> float:
        """Updates from one logged training loss to the next."""
        gaps = sorted(b["update"] - a["update"] for a, b in pairwise(self.updates))
        return gaps[len(gaps) // 2] if gaps else 1

    def smoothed(self, axis: str = "update") -> list[float]:
        """The losses of `along`, smoothed as in the report; what is a mean already stays."""
        losses = self.along(axis)[1]
        return smooth(losses, span(len(losses), self.gap))

    def place(self, axis: str, update: float) -> float | None:
        """Where an update lies on another axis: at the last line up to it."""
        return next(
            (u[axis] for u in reversed(self.updates) if u["update"] <= update and axis in u), None
        )

    @property
    def lowest(self) -> tuple[float, float] | None:
        """(update, loss) of the lowest validation, of the first series."""
        series = next(iter(self.validations.values()), [])
        return min(series, key=lambda point: point[1], default=None)


def read(path: str | os.PathLike) -> Log:
    """One log, of whichever kind. Raises `LorakitError` where there is none, or no loss in it."""
    path, kinds = Path(path), registry.modules("logs")
    found = next((module for module in kinds.values() if module.claims(path)), None)
    if found is None and not path.is_file():
        Folder.of(path)  # says that there is none
    if found is None:
        raise LorakitError(
            f"{path}: is no log that is known here. Known are "
            + "; ".join(module.WHAT for module in kinds.values())
        )
    log = found.read(path)
    log.path = path
    finite(log)
    if not log.updates and not any(log.validations.values()):
        raise LorakitError(f"{path}: holds no loss of training yet")
    return log


def finite(log: Log) -> None:
    """Leaves out what is no number, and says so."""
    every = [*log.updates, *(point for series in log.validations.values() for point in series)]
    log.updates = [u for u in log.updates if math.isfinite(u["loss"])]
    log.validations = {n: [p for p in s if math.isfinite(p[1])] for n, s in log.validations.items()}
    lost = len(every) - len(log.updates) - sum(map(len, log.validations.values()))
    if lost:
        log.notes.append(f"{lost} losses are no finite number; they are left out")
    if log.gap > 1 and log.counted == "update":
        log.notes.append(f"it says a training loss every {log.gap:g} updates")


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that another tool logged, by the names they have here."""
    return {
        ours: settings[theirs]
        for theirs, ours in KNOWN_AS.items()
        if settings.get(theirs) not in (None, "", -1)
    }


def name_of(path: Path, dull: Iterable[str]) -> str:
    """A name for people: of the file, or of the nearest folder above that says more than where tools keep logs."""
    own = path.stem if path.is_file() else path.absolute().name
    for part in (own, *(p.name for p in path.absolute().parents)):
        if part and not any(part.startswith(word) for word in dull):
            return part
    return path.name
