"""Looks at a data file before anything is trained on it: every bad row located, and what the good ones are like."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit import base, data, registry
from lorakit.checks import Finding
from lorakit.data import DataReport, Source
from lorakit.errors import LorakitError
from lorakit.example import Example, Rejected
from lorakit.files import whole
from lorakit.run import Run

SAMPLE = 10_000  # rows for the checks that need not see all


@dataclass
class Checked:
    """What was found, for a terminal (`lines`), a notebook (`picture`) and a program (`as_dict`)."""

    report: DataReport
    rows: dict[str, int]  # usable rows of each file, by the set it is for
    sampled: int  # rows that the sampled checks saw
    found: dict[str, list[Finding]]
    checks: dict[str, Any]

    @property
    def usable(self) -> bool:
        """Whether every row can be used and nothing is wrong with the sets."""
        return not self.report.rejected and not any(f.level == "wrong" for fs in self.found.values() for f in fs)

    def lines(self) -> list[str]:
        total = sum(self.rows.values())
        out = [f"{self.report.file}: {self.report.rows:,} rows, {self.report.format}; {self.report.reason}",
               f"{total:,} usable, {len(self.report.rejected):,} not; by set: "
               + ", ".join(f"{n} {c:,}" for n, c in self.rows.items())]
        if self.sampled < total:
            names = ", ".join(c.TITLE for c in map(_module, self.checks) if c.SAMPLED)
            out.append(f"looked for in a sample of {self.sampled:,} rows: {names}")
        for findings in self.found.values():
            for f in findings:
                out.append(f"{'' if f.level == 'note' else f.level.upper() + ': '}{f.text}")
                out += [f"    {row}" for row in f.rows]
        return out + self.report.notes

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: report, findings and the figures behind them."""
        return {"usable": self.usable, "rows": self.rows, "sampled": self.sampled, "report": asdict(self.report),
                "findings": [{"check": n, **asdict(f)} for n, fs in self.found.items() for f in fs],
                "facts": {n: c.facts() for n, c in self.checks.items()}}

    def picture(self, *names: str) -> Any:
        """A matplotlib figure of these checks, or of all that have something to show."""
        from matplotlib.figure import Figure

        drawn = [c for n, c in self.checks.items() if hasattr(c, "draw") and n in (names or self.checks)
                 and c.draw(Figure().subplots())]
        wide, high = min(2, max(1, len(drawn))), max(1, -(-len(drawn) // 2))
        figure = Figure(figsize=(5.5 * wide, 3.2 * high), layout="constrained")
        for place, check in enumerate(drawn, 1):
            axes = figure.add_subplot(high, wide, place)
            check.draw(axes)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def _module(name: str) -> Any:
    return registry.load("checks", name)


def check(run: Run) -> Checked:
    """The data of a run, for its model and `max_length`. Raises `LorakitError` when a file cannot be read at all."""
    tokenizer, notes = base.tokenizer(run.model)
    found = look(data.sources(run.data, run.validation_data, run.test_data, run.format), tokenizer=tokenizer,
                 columns=run.columns, task=run.task, max_length=run.max_length, seed=run.seed)
    found.report.notes += notes
    return found


def look(sources: Mapping[str, Source], *, tokenizer: Any, columns: Mapping[str, str] | None = None,
         task: str = "auto", max_length: int = 1024, seed: int = 0, sample: int = SAMPLE) -> Checked:
    """Reads each file once, a row at a time."""
    gives = None if task == "auto" else registry.load("tasks", task).GIVES
    report, rows, kept, checks = DataReport(""), Counter(), _Sample(sample, seed), {}
    for name, it in sources.items():
        here = report if name == "train" else DataReport("")
        for row in data.stream(it, here, columns=columns, gives=gives):
            if isinstance(row, Rejected):
                report.rejected.append(row)
                continue
            if not checks:
                found = registry.load("schemas", here.schema).GIVES
                tasks = registry.modules("tasks")
                module = tasks[task] if task != "auto" else next(t for t in tasks.values() if found == t.GIVES)
                checks = {n: m.Check(module, tokenizer, max_length) for n, m in registry.modules("checks").items()}
                every = [c for n, c in checks.items() if not _module(n).SAMPLED]
            rows[name] += 1
            kept.see(row, name)
            for one in every:
                one.see(row, name)
        if not rows[name]:
            bad = report.rejected[-1]
            raise LorakitError(f"{it.name}: no usable row; the first: {bad.where}: {bad.reason}")
        if name != "train":
            report.notes.append(f"{name} rows: {here.file}: {here.rows:,} rows, {here.format}; {here.reason}")
    report.sha256 = data.identity(sources)
    for row, name in data.shown(kept.rows(), "a closer look"):
        for n, one in checks.items():
            if _module(n).SAMPLED:
                one.see(row, name)
    return Checked(report, dict(rows), len(kept.rows()), {n: c.findings() for n, c in checks.items()}, checks)


class _Sample:
    """So many rows, each as likely as any other, in the order of the files (algorithm R, Vitter 1985)."""

    def __init__(self, size: int, seed: int):
        self.size, self.seen, self.random = size, 0, random.Random(seed)
        self.kept: list[tuple[int, Example, str]] = []

    def see(self, row: Example, name: str) -> None:
        place = self.seen if self.seen < self.size else self.random.randrange(self.seen + 1)
        if self.seen < self.size:
            self.kept.append((self.seen, row, name))
        elif place < self.size:
            self.kept[place] = (self.seen, row, name)
        self.seen += 1

    def rows(self) -> list[tuple[Example, str]]:
        return [(row, name) for _, row, name in sorted(self.kept, key=lambda k: k[0])]


def fix(run: Run) -> tuple[Path, Path]:
    """(a clean copy as JSON Lines, the rows left out with their reasons), beside the file; exact repetitions go too.

    Raises `LorakitError` when either is there already: nothing is written over.
    """
    it = data.source(run.data, run.format)
    gives = None if run.task == "auto" else registry.load("tasks", run.task).GIVES
    path = Path(it.path) if Path(it.path).exists() else Path(Path(it.path).name)
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    clean, left = path.with_name(f"{stem}.clean.jsonl"), path.with_name(f"{stem}.rejected.jsonl")
    for target in (clean, left):
        if target.exists():
            raise LorakitError(f"{target}: is there already; move it away first, nothing is written over")
    seen: dict[int, str] = {}
    report = DataReport("")
    with whole(clean) as good, whole(left) as bad, open(good, "w", encoding="utf-8") as kept, \
            open(bad, "w", encoding="utf-8") as rest:
        for row in data.stream(it, report, columns=run.columns, gives=gives):
            if isinstance(row, Example):
                before = seen.setdefault(data.fingerprint(row), row.where)
                if before == row.where:
                    kept.write(json.dumps(row.fields["columns"], ensure_ascii=False) + "\n")
                    continue
                row = Rejected(row.file, row.row, f"repeats {before}")
            rest.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
    return clean, left


