"""Looks at a data file before anything is trained on it: every bad row located, and what the good ones are like."""

from __future__ import annotations

import io
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.data import loading, splitting
from lorakit.data.example import Example, Rejected
from lorakit.data.matching import columns_of
from lorakit.data.quality import LEVELS, Finding, some
from lorakit.data.report import DataReport, listed, shown
from lorakit.data.sources import Source, identity, of_run
from lorakit.models import served
from lorakit.models.derived import base_of
from lorakit.run import Run
from lorakit.tasks import dataset

Encode = Callable[[Example, int], list[dict]]

Choose = Callable[[str], Encode | None]

WHOLE = 10_000  # rows of a file that every check sees all of
SAMPLE = 5_000  # rows of a larger one for the checks that need not see all
WIDE, BAR, TITLED = (
    5.5,
    0.27,
    2,
)  # inches of a picture's column and of a bar; bars that a title takes


@dataclass
class Checked:
    """What was found, for a terminal (`lines`), a notebook (`words`, `picture`) and a program (`as_dict`)."""

    report: DataReport
    rows: dict[str, int]  # usable rows of each file, by the set it is for
    sampled: int  # rows that the sampled checks saw
    found: dict[str, list[Finding]]
    checks: dict[str, Any]
    sample: list[tuple[Example, str]] = field(default_factory=list, repr=False)  # row, set

    @property
    def usable(self) -> bool:
        """Whether every row can be used and nothing is wrong with the sets."""
        return not any(f.level == "wrong" for _, f in self.findings())

    def findings(self, *names: str) -> list[tuple[str, Finding]]:
        """(check, finding) of these checks, or of all: what is wrong first, of equals what concerns the most rows."""
        found = [(n, f) for n in _known(names) or self.found for f in self.found.get(n, ())]
        return sorted(found, key=lambda pair: (LEVELS.index(pair[1].level), -pair[1].count))

    def words(self, *names: str) -> str:
        """The findings of these checks, or of all, with the rows they name."""
        return "\n".join(self._all(*names))

    def _all(self, *names: str) -> Iterator[str]:
        return (line for name, f in self.findings(*names) for line in self._lines(name, f))

    def _lines(self, name: str, f: Finding) -> Iterator[str]:
        total, mark = sum(self.rows.values()), "" if f.level == "note" else f"{f.level.upper()}: "
        seen = f" (among {self.sampled:,} of {total:,} rows, drawn at random)"
        yield f"{mark}{f.text}{seen if name in self.checks and _module(name).SAMPLED and self.sampled < total else ''}"
        yield from (f"    {row}" for row in f.rows)
        if f.rows and f.count > len(f.rows):
            yield f"    … and {f.count - len(f.rows):,} more"

    def lines(self) -> list[str]:
        """What was read, how much of it is usable, then the findings, the worst first."""
        levels = Counter(f.level for _, f in self.findings())
        return [
            f"{self.report.file}: {some(self.report.rows)}, {self.report.format}; {self.report.reason}",
            *([f"not used: {listed(self.report.unused)}"] if self.report.unused else []),
            f"{some(sum(self.rows.values()))} can be used, {len(self.report.rejected):,} cannot; sets: "
            + ", ".join(f"{n} {c:,}" for n, c in self.rows.items()),
            f"{some(levels['wrong'], 'error')}, {some(levels['warning'], 'warning')}",
            *self._all(),
            *self.report.notes,
        ]

    def summary(self) -> str:
        """How much of the data can be used and what to do, in one or two sentences without terms."""
        good, bad = sum(self.rows.values()), len(self.report.rejected)
        levels = Counter(f.level for _, f in self.findings())
        text = (
            f"{good:,} of {good + bad:,} rows can be used; "
            + ("the other one is left out." if bad == 1 else f"the {bad:,} others are left out.")
            if bad
            else f"{'All ' if good > 1 else ''}{some(good)} can be used."
        )
        hints = levels["wrong"] + levels["warning"]
        if not hints:
            return text
        return (
            f"{text} {hints} {'hint' if hints == 1 else 'hints'} above, the most important first."
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: report, findings and the figures behind them."""
        return {
            "usable": self.usable,
            "rows": self.rows,
            "sampled": self.sampled,
            "report": asdict(self.report),
            "findings": [{"check": n, **asdict(f)} for n, f in self.findings()],
            "facts": {n: c.facts() for n, c in self.checks.items()},
        }

    def picture(self, *names: str) -> Any:
        """A matplotlib figure of these checks, or of all that have something to show."""
        from matplotlib.figure import Figure

        class Picture(Figure):
            def savefig(self, *args: Any, **kwargs: Any) -> None:
                with warnings.catch_warnings():  # letters that the font lacks become boxes
                    warnings.filterwarnings("ignore", "Glyph .* missing from")
                    super().savefig(*args, **kwargs)

            def _repr_png_(self) -> bytes:
                self.savefig(out := io.BytesIO(), format="png", dpi=90)
                return out.getvalue()

        bars = {n: self.checks[n].draw(Figure().subplots()) for n in _known(names) or self.checks}
        columns = _columns({n: high for n, high in bars.items() if high})
        high = max((sum(TITLED + bars[n] for n in names) for names in columns), default=2)
        figure = Picture(figsize=(WIDE * max(1, len(columns)), BAR * high), layout="constrained")
        parts = figure.subfigures(1, max(1, len(columns)), squeeze=False)[0]
        for part, column in zip(parts, columns):
            rest = high - sum(
                TITLED + bars[n] for n in column
            )  # left blank, so that all bars are alike
            grid = part.add_gridspec(
                len(column) + 1, 1, height_ratios=[*(bars[n] for n in column), max(rest, 0.01)]
            )
            for place, name in enumerate(column):
                self.checks[name].draw(axes := part.add_subplot(grid[place]))
                axes.spines[["top", "right"]].set_visible(False)
        if not columns:
            parts[0].text(
                0.5, 0.5, "nothing was found to draw", ha="center", va="center", color="gray"
            )
        return figure


def _columns(bars: Mapping[str, int]) -> list[list[str]]:
    """Names in at most two columns of about the same height, the tallest first."""
    columns: list[list[str]] = [[], []]
    for name in sorted(bars, key=lambda name: bars[name], reverse=True):
        min(columns, key=lambda names: sum(TITLED + bars[n] for n in names)).append(name)
    return [names for names in columns if names]


def _module(name: str) -> ModuleType:
    return registry.load("checks", name)


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names. Raises `LorakitError` for one that no check has."""
    for name in names:
        _module(name)
    return names


def encoder_of(run: Run) -> tuple[Choose, list[str]]:
    """(what finds how the run would encode rows of a schema, notes on the model's tokenizer)."""
    base = base_of(run)

    def choose(schema: str) -> Encode | None:
        given = registry.load("schemas", schema)
        try:
            name = (
                run.task
                if run.task != "auto"
                else served.task_for(given, base.config, base.processor, run.model)
            )
        except LorakitError:
            if "model" in run.model_fields_set:
                raise
            return None  # nobody has named a model, and lorakit's own cannot see or hear
        task = registry.load("tasks", name)
        reader = base.processor if task.MEDIUM else base.tokenizer
        settings = tasks.settings_of(task, run)
        return lambda example, max_length: task.encode(example, reader, max_length, **settings)

    return choose, list(base.notes)


def gives_of(task: str) -> str | None:
    return None if task == "auto" else registry.load("tasks", task).GIVES


def check(run: Run) -> Checked:
    """The data of a run, for its model and `max_length`. Raises `LorakitError` when a file cannot be read at all.

    The rows are prepared as the run prepares them (of a large file a sample of them), so that what a run refuses, this
    refuses for the same reason.
    """
    choose, notes = encoder_of(run)
    found = look(
        of_run(
            run.data, run.validation_data, run.test_data, run.format, run.replay, run.media_folder
        ),
        choose=choose,
        **columns_of(run),
        gives=gives_of(run.task),
        max_length=base_of(run).fitting(run),
        seed=run.seed,
    )
    found.report.notes += notes
    try:
        prepared = _prepared(run, found)
    except LorakitError as error:
        found.found["run"] = [Finding("wrong", f"a run refuses these rows: {error}")]
    else:
        found.report.sets = prepared.sets
        found.report.near_duplicates = prepared.near_duplicates
        known = {*found.report.notes}
        found.report.notes += [note for note in prepared.notes if note not in known]
    return found


def _prepared(run: Run, found: Checked) -> DataReport:
    """The report of the preparation that the run would make."""
    if sum(found.rows.values()) <= WHOLE or run.max_rows:
        return dataset.prepare(run).report
    sets: dict[str, list[Example]] = {}
    for row, name in found.sample:
        sets.setdefault(name, []).append(row)
    report = DataReport(found.report.file, schema=found.report.schema)
    parts = splitting.split(
        sets.pop("train"),
        validation_fraction=run.validation_fraction,
        test_fraction=run.test_fraction,
        seed=run.seed,
        group_by=run.group_by,
        given=sets,
        report=report,
        folds=run.folds,
        fold=run.fold,
        near=None if run.near_duplicates == "off" else run.near_duplicates,
    )
    base = base_of(run)
    dataset.encode_sets(run, parts, report, base)
    return DataReport(found.report.file)  # its counts are the sample's


def look(
    sources: Mapping[str, Source],
    *,
    choose: Choose,
    columns: Mapping[str, str] | None = None,
    keep_rows: Mapping[str, Any] | None = None,
    ignore_columns: Sequence[str] = (),
    gives: str | None = None,
    max_length: int = 1024,
    seed: int = 0,
    whole: int = WHOLE,
    sample: int = SAMPLE,
) -> Checked:
    """Reads each file once, a row at a time. `choose` finds what encodes the rows of a schema."""
    rows, kept = Counter[str](), _Sample(whole, sample, seed)
    checks: dict[str, Any] = {}
    report = DataReport("")
    for key, it in dict(sources).items():
        if key not in sources:  # official rows without answers
            continue
        name = key.split()[0]
        reading = loading.read(
            it, columns=columns, keep_rows=keep_rows, ignore_columns=ignore_columns, gives=gives
        )
        here = reading.report()
        if name == "train":
            report = here
            sources, notes = loading.with_answers(sources, here.schema, columns)
            report.notes += notes
        before = len(report.rejected)
        for row in reading.rows:
            here.rows += 1
            if isinstance(row, Rejected):
                report.rejected.append(row)
                continue
            if not checks:
                known, encode = registry.modules("checks"), choose(here.schema)
                checks = {n: m.Check(encode, max_length) for n, m in known.items()}
                every = [c for n, c in checks.items() if not known[n].SAMPLED]
            rows[name] += 1
            kept.see(row, name)
            for one in every:
                one.see(row, name)
        if not rows[name]:
            bad = report.rejected[before]
            raise LorakitError(f"{it.name}: no usable row; the first: {bad.where}: {bad.reason}")
        if name != "train":
            report.notes.append(
                f"{name} rows: {here.file}: {some(here.rows)}, {here.format}; {here.reason}"
            )
        gives = registry.load("schemas", here.schema).GIVES
    report.sha256 = identity(sources)
    sample_rows = kept.rows()
    _finish(checks, report.rejected, sample_rows)
    found = {n: c.findings() for n, c in checks.items()}
    return Checked(report, dict(rows), len(sample_rows), found, checks, sample_rows)


def _finish(
    checks: Mapping[str, Any], rejected: list[Rejected], sample: list[tuple[Example, str]]
) -> None:
    """Shows the sample to the checks that look at one, the rejected rows to those that count them."""
    sampled = [one for name, one in checks.items() if _module(name).SAMPLED]
    for row, name in shown(sample, "a closer look"):
        for one in sampled:
            one.see(row, name)
    for one in checks.values():
        if hasattr(one, "reject"):
            for bad in rejected:
                one.reject(bad)


class _Sample:
    """All of at most `size` rows; of more, `few` of them, each as likely as any other. In the order of the files.

    Algorithm R (Vitter 1985, https://doi.org/10.1145/3147.3165).
    """

    def __init__(self, size: int, few: int, seed: int):
        self.size, self.few, self.seen, self.random = size, few, 0, random.Random(seed)
        self.kept: list[tuple[int, Example, str]] = []

    def see(self, row: Example, name: str) -> None:
        place = self.seen if self.seen < self.size else self.random.randrange(self.seen + 1)
        if self.seen < self.size:
            self.kept.append((self.seen, row, name))
        elif place < self.size:
            self.kept[place] = (self.seen, row, name)
        self.seen += 1

    def rows(self) -> list[tuple[Example, str]]:
        kept = self.kept
        if self.seen > self.size:
            kept = self.random.sample(kept, min(self.few, self.size))
        return [(row, name) for _, row, name in sorted(kept, key=lambda k: k[0])]
