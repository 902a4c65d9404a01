"""A table with a row per logged step, as notebooks show it, `CSVLogger` writes it and Weights & Biases exports it:

Step,Training Loss,Validation Loss
10,8.926100,No log
"""

from __future__ import annotations

import re
from pathlib import Path

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.data.example import Example
from lorakit.results.logs import Log, name_of

WHAT = "a table (*.csv, *.tsv) with columns such as Step, Training Loss, Validation Loss"
# How columns are called, letters alone, the more exact first.
STEP = ("update", "step", "globalstep", "trainglobalstep", "iteration", "iter", "steps")
EPOCH = ("epoch", "epochs", "trainepoch")
TRAINING = ("trainingloss", "trainloss", "losstrain", "loss", "trainlossstep")
VALIDATION = (
    "validationloss",
    "valloss",
    "evalloss",
    "lossval",
    "validloss",
    "evallossepoch",
    "testloss",
)
TOKENS = ("tokens", "targettokens", "numinputtokensseen", "trainnuminputtokensseen")
SECONDS = ("seconds", "time", "relativetime")


def claims(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def read(path: Path) -> Log:
    rows = [
        row.fields
        for row in registry.load("formats", path.suffix.lower()[1:]).read(path, header=True)
        if isinstance(row, Example)
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    named = {
        kind: next((c for word in words for c in columns if plain(c) == word), None)
        for kind, words in (
            ("step", STEP),
            ("epoch", EPOCH),
            ("loss", TRAINING),
            ("validation", VALIDATION),
            ("tokens", TOKENS),
            ("seconds", SECONDS),
        )
    }
    counted = named["step"] or named["epoch"]
    if not counted or not (named["loss"] or named["validation"]):
        lacking = "no column of steps or epochs" if not counted else "no column of a loss"
        raise LorakitError(
            f"{path}: is no log: {lacking}. Its columns are {', '.join(map(str, columns))}; rename "
            "them to step, loss and validation_loss"
        )
    log = log_of(
        rows, named, counted, name_of(path, ("trainer_log", "metrics", "version_", "history"))
    )
    if any("reward" in plain(c) for c in columns):
        log.notes.append(
            "it has rewards: the loss of reinforcement learning says little beside a cross entropy"
        )
    return log


def log_of(rows: list[dict], named: dict[str, str | None], counted: str, name: str) -> Log:
    updates, series, unread = [], [], 0
    for row in rows:
        at, loss, validation = (
            number(row.get(c)) for c in (counted, named["loss"], named["validation"])
        )
        if at is None:
            unread += 1
            continue
        if loss is not None:
            more = {axis: number(row.get(named[axis])) for axis in ("tokens", "seconds")}
            updates.append(
                {"update": at, "loss": loss, **{k: v for k, v in more.items() if v is not None}}
            )
        if validation is not None:
            series.append((at, validation))
    notes = [f"{unread} rows have no number in '{counted}'; they are left out"] if unread else []
    return Log(
        name,
        "csv",
        updates,
        {"validation": series} if series else {},
        notes=notes,
        counted="update" if counted == named["step"] else "epoch",
    )


def plain(column: str) -> str:
    """`run 7 - train/loss` (as Weights & Biases exports) -> trainloss"""
    return re.sub(r"[^a-z]", "", str(column).rpartition(" - ")[2].lower())


def number(value: object) -> float | None:
    """None where there is none: an empty cell, `No log`."""
    try:
        return float(str(value).replace(",", "")) if value not in (None, "") else None
    except ValueError:
        return None
