"""Runs and logs side by side: curves, what differs, who is better by how much, and whether the comparison is fair."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.results import evaluate, logs, plots
from lorakit.results.evaluate import Outcome
from lorakit.results.logs import AXES, Log
from lorakit.results.verdict import interval, number, signed
from lorakit.run import Run
from lorakit.runs.folder import Folder, read_lines

UNKNOWN = "?"  # a setting that a log does not tell


@dataclass
class Comparison:
    """Each later run against the first that has scores, on the test rows they share."""

    names: list[str]
    settings: dict[str, list[Any]]  # those that differ
    unfair: list[str]  # reasons
    differences: list[
        dict[str, dict]
    ]  # one per later run: metric -> entry (before: the first run's score)
    logs: list[Log] = field(default_factory=list)
    reference: int = 0  # place of the run that `before` is of

    def lines(self) -> list[str]:
        out = [f"{name}: " + ", ".join(map(str, values)) for name, values in self.settings.items()]
        for name, metrics in zip(self.names[1:], self.differences, strict=True):
            for metric, e in metrics.items():
                out.append(
                    f"{metric}: {self.names[self.reference]} {number(e['before'])}, {name} "
                    f"{number(e['after'])}, difference {signed(e['difference'])} (95 % interval "
                    f"{interval(e['interval'])}, {e['rows']} rows)"
                )
        out += [f"curve of {n}: {said(log)}" for n, log in zip(self.names, self.logs, strict=True)]
        return out + [f"unfair: {reason}" for reason in self.unfair]

    def table(self) -> list[dict[str, Any]]:
        """A row per run: how long it trained, where its curves end, and when its smoothed training loss was first as
        low as the first run's in the end."""
        losses = self.logs[0].smoothed()
        goal = losses[-1] if losses else None
        return [
            {
                "run": name,
                **ends(log),
                **{
                    f"{axis}s to {goal:.3f}".replace("ss to", "s to"): reach(log, axis, goal)
                    for axis in AXES
                    if losses
                },
            }
            for name, log in zip(self.names, self.logs, strict=True)
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def ends(log: Log) -> dict[str, Any]:
    """Where the curves of a log end."""
    last, losses = (log.updates or [{}])[-1], log.smoothed()
    at, low = log.lowest or (None, None)
    return {
        f"{log.counted}s": last.get("update", at),
        "loss at the end": losses[-1] if losses else None,
        "lowest validation": low,
        "at": at,
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds"),
    }


def said(log: Log) -> str:
    """`60 updates, loss 2.210 → 0.914, lowest validation 1.020 at update 50, 31,200 tokens, 12.3 s`"""
    end, losses = ends(log), log.along("update")[1]
    parts = [f"{end[f'{log.counted}s']:g} {log.counted}s"]
    parts += [f"loss {number(losses[0])} → {number(end['loss at the end'])}"] if losses else []
    parts += (
        [
            f"lowest {next(iter(log.validations))} {number(end['lowest validation'])} at {log.counted} {end['at']:g}"
        ]
        if log.lowest
        else []
    )
    parts += [f"{end['tokens']:,.0f} tokens"] if end["tokens"] else []
    parts += [f"{end['seconds']:.1f} s"] if end["seconds"] else []
    return ", ".join(parts) + "".join(f" ({note})" for note in log.notes)


def reach(log: Log, axis: str, goal: float | None) -> float | None:
    """Where along an axis the smoothed training loss is first as low as `goal`; None: nowhere."""
    places, losses = log.along(axis)[0], log.smoothed(axis)
    return next(
        (p for p, loss in zip(places, losses, strict=True) if goal is not None and loss <= goal),
        None,
    )


def outcome(folder: Folder) -> tuple[Outcome, list[dict]]:
    """(what the tuned model did, its test rows). Raises `LorakitError` when the run was not scored."""
    path, status = folder.outcome("after"), folder.record["status"]
    if status != "done":
        raise LorakitError(f"{folder.path}: has no scores yet (status {status})")
    if not path.exists():
        raise LorakitError(f"{folder.path}: was not scored: it had no test rows")
    if not {"data", "metrics"} <= folder.record.keys():
        raise LorakitError(
            f"{folder / 'record.json'}: does not name the data and the metrics; start the run again "
            "under another name"
        )
    found, rows = Outcome.read(path), read_lines(folder.answers, "prompt", "reference")
    if not len(found.tokens) == len(found.answers) == len(rows):
        raise LorakitError(
            f"{path}: is damaged (it has other rows than answers.jsonl); start the run again under "
            "another name"
        )
    return found, rows


def compare(*paths: str | os.PathLike, unscored: bool = False) -> Comparison:
    """Two or more runs, and logs of other tools. Scores are paired row by row where the test rows are the same.

    With `unscored`, runs without scores (still running, stopped, without test rows) are compared by their curves.
    Raises `LorakitError` for what is no log, and for a run without scores unless `unscored`.
    """
    if len(paths) < 2:
        raise LorakitError("compare needs two runs or more")
    places = [Path(p) for p in paths]
    folders = [
        Folder.of(p) if p.is_dir() and (p / "record.json").is_file() else None for p in places
    ]
    outcomes = [_outcome(f, unscored) if f else None for f in folders]
    found = [logs.read(p) for p in places]
    settings = differing(
        [_settings(f) if f else log.settings for f, log in zip(folders, found, strict=True)]
    )
    unfair = [*_unfair([f for f in folders if f], settings), *_unknown(folders, found)]
    reference = next((i for i, o in enumerate(outcomes) if o), 0)
    names = _names(found)
    pairs = [
        _paired(
            folders[reference],
            outcomes[reference],
            outcome if i > reference else None,
            found[i].name,
            unfair,
        )
        for i, outcome in enumerate(outcomes)
    ]
    return Comparison(names, settings, unfair, pairs[1:], found, reference)


def _outcome(folder: Folder, unscored: bool) -> tuple[Outcome, list[dict]] | None:
    if not unscored:
        return outcome(folder)
    with contextlib.suppress(LorakitError):
        return outcome(folder)
    return None


def _settings(folder: Folder) -> dict[str, Any]:
    """As resolved; of a run that has not begun, as they were asked for."""
    file = folder / "run.yaml"
    return (
        Run.read(file).model_dump()
        if file.exists() or folder.record["status"] == "done"
        else folder.record.get("settings", {})
    )


def _names(found: Sequence[Log]) -> list[str]:
    """Names of the logs, told apart by their number where two have the same."""
    names = [log.name for log in found]
    return [
        name if names.count(name) == 1 or len({log.path for log in found}) == 1 else f"{name} ({i})"
        for i, name in enumerate(names, 1)
    ]


def differing(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are known of two or more and not equal, the folder's own name aside."""
    names = dict.fromkeys(name for known in settings for name in known)
    values = {name: [known.get(name, UNKNOWN) for known in settings] for name in names}
    return {
        name: row
        for name, row in values.items()
        if name not in ("name", "output_dir")
        and any(a != b for a in row for b in row if UNKNOWN not in (a, b))
    }


def _unfair(folders: Sequence[Folder], settings: dict[str, list[Any]]) -> list[str]:
    """Why runs of our own say little beside each other."""
    records, unfair = [f.record for f in folders], []
    if len({r.get("base_sha256") for r in records}) > 1:
        unfair.append("the bases differ")
    others = len({r.get("data", {}).get("sha256") for r in records}) > 1
    if others:
        unfair.append("the data differ")
    if "global_batch_size" in settings:
        unfair.append(f"the global batch sizes differ: {settings['global_batch_size']}")
    if not others and len({rows for f in folders if (rows := _validated(f))}) > 1:
        unfair.append("the validation rows differ: their curves cannot be laid beside each other")
    return unfair


def _validated(folder: Folder) -> str:
    """SHA-256 of the validation rows as they are encoded, whatever their order; "" where there are none."""
    from lorakit.tasks import rows

    try:
        validation = rows.read(folder / "rows")[0]["validation"]
    except (LorakitError, KeyError):
        return ""
    return hashlib.sha256(
        repr(sorted(map(str, validation.arrow("ids").to_pylist()))).encode()
    ).hexdigest()


def _unknown(folders: Sequence[Folder | None], found: Sequence[Log]) -> list[str]:
    """What a log of another tool leaves open."""
    names = [log.name for folder, log in zip(folders, found, strict=True) if not folder]
    unfair = (
        [
            f"the log of {', '.join(names)} does not name data and base: that they are the same is for you to know"
        ]
        if names
        else []
    )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if len(set(known := [log.settings[name] for log in found if name in log.settings])) > 1:
            unfair.append(
                f"{name} differs ({', '.join(map(str, known))}); the number of devices is not in the log"
            )
    if len({log.counted for log in found}) > 1:
        unfair.append(
            "epochs are not updates: "
            + ", ".join(f"{log.name} counts {log.counted}s" for log in found)
        )
    return unfair


def _paired(
    folder: Folder | None,
    first: tuple[Outcome, list[dict]] | None,
    other: tuple[Outcome, list[dict]] | None,
    name: str,
    unfair: list[str],
) -> dict[str, dict]:
    """Metric -> entry of two runs on the same test rows; {} where there is nothing to pair."""
    if not folder or not first or not other:
        return {}
    keys = [[(r["prompt"], r["reference"]) for r in rows] for _, rows in (first, other)]
    if keys[0] != keys[1]:
        unfair.append(f"the test rows of {name} are others: its scores cannot be paired")
        return {}
    references = [r["reference"] for r in other[1]]
    return {
        metric: evaluate.entry(metric, options, first[0], other[0], references)
        for metric, options in folder.record["metrics"].items()
    }


def plot(paths: Sequence[str | os.PathLike], target: Path) -> Path:
    """The curves of several runs and logs in one picture."""
    found = [logs.read(p) for p in paths]
    with atomic_write(Path(target)) as part:
        part.write_bytes(plots.png(lambda colours: plots.comparison(found, _names(found))))
    return Path(target)


def figure(found: Sequence[Log], names: Sequence[str] | None = None) -> Any:
    """A matplotlib figure: the losses over updates, and over tokens and seconds where two logs or more tell them."""
    return plots.comparison(found, names or _names(found))
