"""Runs side by side: what differs, who is better by how much, and whether the comparison is fair."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit import evaluate
from lorakit.errors import LorakitError
from lorakit.evaluate import Outcome
from lorakit.record import Folder, read_lines
from lorakit.report import interval, number, signed
from lorakit.run import Run


@dataclass
class Comparison:
    """Each later run against the first, on the test rows they share."""

    names: list[str]
    settings: dict[str, list[Any]]  # those that differ
    unfair: list[str]  # reasons
    differences: list[dict[str, dict]]  # one per later run: metric -> entry (before: the first run's score)

    def lines(self) -> list[str]:
        out = [f"{name}: " + ", ".join(map(str, values)) for name, values in self.settings.items()]
        for name, metrics in zip(self.names[1:], self.differences, strict=True):
            for metric, e in metrics.items():
                out.append(f"{metric}: {self.names[0]} {number(e['before'])}, {name} {number(e['after'])}, difference "
                           f"{signed(e['difference'])} (95 % interval {interval(e['interval'])}, {e['rows']} rows)")
        return out + [f"unfair: {reason}" for reason in self.unfair]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def outcome(folder: Folder) -> tuple[Outcome, list[dict]]:
    """(what the tuned model did, its test rows). Raises `LorakitError` when the run was not scored."""
    path, status = folder / "rows" / "after.json", folder.record["status"]
    if status != "done":
        raise LorakitError(f"{folder.path}: has no scores yet (status {status})")
    if not path.exists():
        raise LorakitError(f"{folder.path}: was not scored: it had no test rows")
    if not {"data", "metrics"} <= folder.record.keys():
        raise LorakitError(f"{folder / 'record.json'}: does not name the data and the metrics; start the run again "
                           "under another name")
    found, rows = Outcome.read(path), read_lines(folder / "answers.jsonl", "prompt", "reference")
    if not len(found.tokens) == len(found.answers) == len(rows):
        raise LorakitError(f"{path}: is damaged (it has other rows than answers.jsonl); start the run again under "
                           "another name")
    return found, rows


def compare(*paths: str | os.PathLike) -> Comparison:
    """Two or more runs. Scores are paired row by row where the test rows are the same."""
    if len(paths) < 2:
        raise LorakitError("compare needs two runs or more")
    folders = [Folder.of(p) for p in paths]
    outcomes = [outcome(f) for f in folders]
    runs = [Run.read(f / "run.yaml").model_dump() for f in folders]
    records = [f.record for f in folders]
    differing = {k: [r[k] for r in runs] for k in runs[0] if any(r[k] != runs[0][k] for r in runs[1:])}
    settings = {k: v for k, v in differing.items() if k not in ("name", "output_dir")}
    unfair = []
    if len({r.get("base_sha256") for r in records}) > 1:
        unfair.append("the bases differ")
    if len({r["data"]["sha256"] for r in records}) > 1:
        unfair.append("the data differ")
    if "global_batch_size" in settings:
        unfair.append(f"the global batch sizes differ: {settings['global_batch_size']}")
    differences: list[dict[str, dict]] = []
    for (other, rows), folder in zip(outcomes[1:], folders[1:], strict=True):
        first, base_rows = outcomes[0]
        keys = [[(r["prompt"], r["reference"]) for r in side] for side in (base_rows, rows)]
        if keys[0] != keys[1]:
            unfair.append(f"the test rows of {folder.path.name} are others: its scores cannot be paired")
            differences.append({})
            continue
        references = [r["reference"] for r in rows]
        differences.append({name: evaluate.entry(name, options, first, other, references)
                            for name, options in records[0]["metrics"].items()})
    return Comparison([f.path.name for f in folders], settings, unfair, differences)


def plot(paths: list[str | os.PathLike], target: Path) -> Path:
    """The training and validation curves of several runs in one picture."""
    from matplotlib.figure import Figure

    from lorakit.report import smooth

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for path in paths:
        updates, validations = Folder.of(path).history()
        line, = axes.plot([u["update"] for u in updates], smooth([u["loss"] for u in updates]), label=Path(path).name)
        axes.plot([v["update"] for v in validations], [v["validation_loss"] for v in validations], "o--",
                  color=line.get_color(), markersize=4, linewidth=1)
    axes.set(xlabel="update", ylabel="loss (nats per target token)")
    axes.set_title("line: training rows, smoothed; dots: validation rows", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    return target
