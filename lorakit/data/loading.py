"""A user's file becomes three disjoint sets of examples: read, matched with a schema, checked, split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data import media, split_column
from lorakit.data.duplicates import NEAR
from lorakit.data.example import Chosen, Example, Examples, Joined, Rejected, Tagged
from lorakit.data.matching import Match, aliases_of, match, renamed, renamer
from lorakit.data.meanings import Choices
from lorakit.data.report import DataReport, listed, shown
from lorakit.data.sources import Source, identity, media_roots, places_of, source, with_media
from lorakit.data.splitting import shuffle_answers, split

HEAD = 1000  # readable rows from which the schema is found
POINT = re.compile(r"-?\d+\.0")
DEEP = 100  # lists and objects inside each other; Python writes and compares values by recursion


@dataclass(frozen=True)
class Reading:
    """A file whose columns are understood."""

    source: Source
    match: Match
    rows: Iterator[Example | Rejected]  # every row of the file, once, in its order

    def report(self) -> DataReport:
        """A report in which no row is counted yet."""
        it, found = self.source, self.match
        report = DataReport(
            it.name, it.format, found.schema, found.reason, used=found.used, unused=found.unused
        )
        report.classes = self._classes()
        passed = it.module.passed(it.path, **it.options) if hasattr(it.module, "passed") else []
        if passed:
            report.notes.append(f"not read, as other splits are: {listed(passed, quoted=False)}")
        return report

    def _classes(self) -> list[str]:
        """The names of the classes in their order, where the data say it of the column that the schema uses."""
        schema, it = registry.load("schemas", self.schema), self.source
        if not hasattr(schema, "LABELS") or not hasattr(it.module, "classes"):
            return []
        column = next((c for c, n in self.match.used.items() if n in schema.REQUIRED[1]), "")
        return [name.strip() for name in it.module.classes(it.path, **it.options).get(column, ())]

    @property
    def schema(self) -> str:
        return self.match.schema


def read(
    it: Source,
    *,
    columns: Mapping[str, str] | None = None,
    keep_rows: Mapping[str, Any] | None = None,
    ignore_columns: Sequence[str] = (),
    gives: str | None = None,
) -> Reading:
    """Every row in its schema's terms, one at a time; `fields["columns"]` are the file's own.

    Raises `LorakitError` when nothing can be read, the columns of the first rows fit no schema, or one of them carries
    a meaning that nothing uses.
    """
    lines = iter(shown(it.read(), f"reading {Path(it.name).name}"))
    head: list[Example | Rejected] = []
    readable: list[Example] = []
    for row in lines:
        head.append(row)
        if isinstance(row, Example):
            readable.append(row)
            if len(readable) == HEAD:
                break
    if not readable:
        first = ": it is empty, or has a header alone"
        if head and isinstance(row := head[0], Rejected):
            first = f"; the first: {row.where}: {row.reason}"
        raise LorakitError(f"{it.name}: no usable row{first}")
    whole = _whole_numbers(readable)
    found = match(readable, gives, Choices(columns or {}, keep_rows or {}, ignore_columns))
    module = registry.load("schemas", found.schema)

    def rows() -> Iterator[Example | Rejected]:
        for row in chain(head, lines):
            if isinstance(row, Example):
                row = _without_points(row, whole) if whole else row
                yield converted(row, module, found, it)
            else:
                yield row

    return Reading(it, found, rows())


def _whole_numbers(rows: Sequence[Example]) -> list[str]:
    """Columns of a table of text that hold whole numbers as pandas writes them where some are missing: 58.0"""

    def written(column: str) -> bool:
        values = [row.fields.get(column) for row in rows]
        there = [v for v in values if v not in (None, "")]
        return 0 < len(there) < len(values) and all(
            isinstance(v, str) and POINT.fullmatch(v) for v in there
        )

    return [column for column in rows[0].fields if written(column)]


def _without_points(row: Example, columns: Sequence[str]) -> Example:
    changed = {c: row.fields[c].removesuffix(".0") for c in columns if row.fields.get(c)}
    return row.with_fields({**row.fields, **changed}) if changed else row


def converted(row: Example, schema: Any, found: Match, it: Source) -> Example | Rejected:
    """The row in the schema's terms, or what is wrong with it."""
    try:
        if _deeper(row.fields, DEEP):
            raise BadRow(f"more than {DEEP} lists or objects inside each other")
        if reason := found.reject(row.fields):
            raise BadRow(reason)
        fields = schema.convert(found.rename(row.fields))
        if "media" in fields:
            places, roots = places_of(it, row), media_roots(it)
            fields["media"] = [
                media.examined(m, schema.GIVES, places, roots) for m in fields["media"]
            ]
    except KeyError as error:
        return Rejected(row.file, row.row, f"column {error} is missing")
    except BadRow as error:
        return Rejected(row.file, row.row, str(error))
    return row.with_fields({**fields, "columns": row.fields})


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other more than so many levels deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for v in inside:  # noqa: SIM110  (asked for every row, and faster so)
        if isinstance(v, (dict, list)) and (not levels or _deeper(v, levels - 1)):
            return True
    return False


def load(
    it: Source | str,
    *,
    columns: Mapping[str, str] | None = None,
    keep_rows: Mapping[str, Any] | None = None,
    ignore_columns: Sequence[str] = (),
    gives: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> tuple[Sequence[Example], DataReport]:
    """Every usable row in its schema's terms, put aside on disk, and a report that names the others.

    `columns` maps a schema's name to the file's column, or to a text with columns in braces; for `keep_rows` and
    `ignore_columns` see `meanings`; `gives` restricts the schemas to one task's field. Of more than `max_rows` a sample
    of so many is kept, in the file's order.
    """
    it = source(it) if isinstance(it, str) else it
    reading = read(
        it, columns=columns, keep_rows=keep_rows, ignore_columns=ignore_columns, gives=gives
    )
    rejected: list[Rejected] = []

    def usable() -> Iterator[Example]:
        for row in reading.rows:
            if isinstance(row, Rejected):
                rejected.append(row)
            else:
                yield row

    examples: Sequence[Example] = Examples(usable())
    if not len(examples):
        bad = rejected[0]
        raise LorakitError(f"{it.name}: no usable row; the first: {bad.where}: {bad.reason}")
    report = reading.report()
    report.sha256 = it.identity
    report.rejected, report.rows = rejected, len(rejected) + len(examples)
    if max_rows is not None and len(examples) > max_rows:
        report.notes.append(
            f"max_rows={max_rows}: a sample of {max_rows:,} of the {len(examples):,} usable rows"
        )
        drawn = np.random.default_rng((seed, 3)).choice(len(examples), max_rows, replace=False)
        examples = Chosen(examples, np.sort(drawn))
    return examples, report


def _loaded(
    sources: Mapping[str, Source], gives: str | None, some: Mapping[str, Any]
) -> tuple[Sequence[Example], DataReport]:
    """The rows of the file, or of all files of a mixture, each with its `source`; one report of all."""
    files = {name: it for name, it in sources.items() if name.split()[0] == "train"}
    examples, report = load(sources["train"], gives=gives, **some)
    if len(files) == 1:
        return examples, report
    gives = registry.load("schemas", report.schema).GIVES
    parts = [Tagged(examples, sources["train"].name)]
    report.notes.insert(0, f"{report.file}: {len(examples)} rows; {report.reason}")
    for it in [*files.values()][1:]:
        try:
            more, other = load(it, gives=gives, **some)
        except LorakitError as error:
            raise LorakitError(
                f"{error.message}; the rows of one run are of one kind, and {report.file} has {report.schema}",
                setting="data",
                where=error.where or it.name,
                cure=error.cure or "leave the file out, or train on it in a run of its own",
            ) from None
        parts.append(Tagged(more, it.name))
        report.notes += [f"{it.name}: {len(more)} rows; {other.reason}", *other.notes]
        report.rejected += other.rejected
        report.rows += other.rows
    report.file = ", ".join(it.name for it in files.values())
    return Joined(*parts), report


def with_answers(
    sources: Mapping[str, Source], schema: str, columns: Mapping[str, str] | None
) -> tuple[dict[str, Source], list[str]]:
    """The sets without official ones of which no row has an answer (Kaggle's test.csv, GLUE's tests); what they are.

    A file that the user names for a set has to have them.
    """
    kept, notes = dict(sources), []
    needed = registry.load("schemas", schema).REQUIRED
    for name, it in sources.items():
        if name.split()[0] == "train" or it.path != sources["train"].path:
            continue
        rows = [row for row in islice(it.read(), HEAD) if isinstance(row, Example)]
        rename = renamer(columns or {}, aliases_of(rows))
        known = [row.fields for row in renamed(rows, rename)]
        if known and all(_lacks(fields, needed) for fields in known):
            del kept[name]
            notes.append(f"the official {name} rows are not used: none of them has an answer")
    return kept, notes


def _lacks(fields: Mapping[str, Any], needed: Sequence[tuple[str, ...]]) -> bool:
    """Whether a name of every slot but one is filled."""
    filled = [any(fields.get(n) not in (None, "", -1) for n in names) for names in needed]
    return len(filled) > 1 and sum(filled) == len(filled) - 1


def prepare(
    sources: Mapping[str, Source],
    *,
    columns: Mapping[str, str] | None = None,
    keep_rows: Mapping[str, Any] | None = None,
    ignore_columns: Sequence[str] = (),
    gives: str | None = None,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_rows: int | None = None,
    group_by: str | None = None,
    shuffled: bool = False,
    folds: int | None = None,
    fold: int | None = None,
    near: float | None = NEAR,
) -> tuple[dict[str, Sequence[Example]], DataReport]:
    """The three sets of a run and what was found on the way. `sources`: `train`, and sets with a file of their own."""
    some: dict[str, Any] = {
        "columns": columns,
        "keep_rows": keep_rows,
        "ignore_columns": ignore_columns,
        "max_rows": max_rows,
        "seed": seed,
    }
    examples, report = _loaded(sources, gives, some)
    sources, notes = with_answers(sources, report.schema, columns)
    report.notes += notes
    given: dict[str, Sequence[Example]] = {}
    gives = registry.load("schemas", report.schema).GIVES
    for name in [n for n in ("validation", "test") if n in sources]:
        given[name], other = load(sources[name], gives=gives, **some)
        new = [note for note in other.notes if note not in report.notes]
        report.notes += [f"{name} rows: {line}" for line in (other.lines()[0], *new)]
        report.rejected += other.rejected
    report.sha256 = with_media(identity(sources), examples)
    own = [name for name in given if sources[name].path == sources["train"].path]
    given |= split_column.parts(examples, report, [*given])
    examples = given.pop("train")
    if folds and given.pop("test", None):
        report.notes.append(
            "the official test rows are set aside: every fold trains and tests on the others"
        )
    if own:
        report.notes.append(f"the data's own splits are used: {', '.join(['train', *own])}")
    sets = split(
        examples,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        group_by=group_by,
        given=given,
        report=report,
        folds=folds,
        fold=fold,
        near=near,
    )
    if shuffled:
        _deal_answers(sets, seed, report)
    return sets, report


def _deal_answers(sets: dict[str, Sequence[Example]], seed: int, report: DataReport) -> None:
    for part in ("train", "validation"):
        sets[part] = shuffle_answers(sets[part], seed)
    report.notes.append(
        "control: the answers of the training and validation rows are dealt at random"
    )
