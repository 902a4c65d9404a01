"""The data of a run, made once for its content and settings: notebook, run and repetition read the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common import files, registry
from lorakit.common.errors import LorakitError
from lorakit.data import loading
from lorakit.data.example import Example, Rejected
from lorakit.data.matching import columns_of
from lorakit.data.report import DataReport
from lorakit.data.sources import Source, media_paths, of_run, shares
from lorakit.models import served
from lorakit.models.base_model import BaseModel
from lorakit.models.derived import base_of
from lorakit.run import Run
from lorakit.tasks import rows
from lorakit.tasks.joined import joined
from lorakit.tasks.mixture import mixed
from lorakit.tasks.rows import Rows

# The settings that decide which rows there are and how they are encoded.
SETTINGS = (
    "columns",
    "keep_rows",
    "ignore_columns",
    "near_duplicates",
    "media_folder",
    "reasoning",
    "task",
    "seed",
    "validation_fraction",
    "test_fraction",
    "max_rows",
    "group_by",
    "shuffle_answers",
    "max_length",
    "question",
    "language",
    "augment",
    "folds",
    "fold",
    "join_documents",
)
MEDIA = "media.json"  # the files that rows are made of beside the data's own
# Raise it when the code that makes rows (data/, tasks/) encodes a file differently: tests/tasks/test_format_version.py
# fails when that is forgotten.
FORMAT_VERSION = 6


@dataclass
class Prepared:
    """The data of a run as they are encoded: what the check, the preview and the training look at."""

    run: Run
    sources: dict[str, Source]
    base: BaseModel
    path: Path  # in the cache
    report: DataReport
    rows: dict[str, Rows]  # by set
    meta: dict[str, Any]  # task, classes, stop_ids, opening

    @property
    def max_length(self) -> int:
        """The most tokens of a row: what the run says, or as many as the model has positions."""
        return self.run.max_length

    @property
    def longest(self) -> int:
        """Tokens of the longest row of text; `max_length` where rows hold pictures or sound."""
        if tasks.get(self.meta["task"]).MEDIUM:
            return self.max_length
        return max(int(some.lengths.max()) for some in self.rows.values())

    @property
    def tokenizer(self) -> Any:
        """The base model's; None for a classifier of pictures."""
        return self.base.tokenizer

    @property
    def processor(self) -> Any:
        """The base model's, of pictures or sound; None for a model of text."""
        return self.base.processor

    def facts(self) -> dict[str, Any]:
        return {
            "file": self.report.file,
            "sha256": self.report.sha256,
            "schema": self.report.schema,
            "task": self.meta["task"],
            "rows": {name: len(r) for name, r in self.rows.items()},
            "lines": self.report.lines(),
        }

    def write(self, folder: Path) -> None:
        """The encoded rows into a run's folder."""
        with files.atomic_write(folder) as part:
            files.copy_tree(self.path / "rows", part)

    def raw(self, n: int = 1) -> list[Example]:
        """The first usable rows of the file, as they stand there (`fields["columns"]`) and as they are understood."""
        found = loading.read(
            self.sources["train"],
            **columns_of(self.run),
            gives=registry.load("schemas", self.report.schema).GIVES,
        )
        return list(islice((row for row in found.rows if isinstance(row, Example)), n))

    def preview(self, index: int = 0, set: str = "train"):
        """The mask of one encoded row, in colour."""
        from lorakit.tasks.preview import PairPreview, Preview

        row = self.rows[set][index]
        shown = Preview(
            row["ids"], row.get("targets", [False] * len(row["ids"])), self.tokenizer, row
        )
        if "rejected_ids" not in row:
            return shown
        other = Preview(row["rejected_ids"], row["rejected_targets"], self.tokenizer)
        return PairPreview(shown, other)


def prepare(run: Run) -> Prepared:
    """Loads, checks, splits and encodes the data of a run, once for their content and settings.

    Raises:
        LorakitError: naming file and row, or the setting at fault.
    """
    sources = of_run(
        run.data, run.validation_data, run.test_data, run.format, run.replay, run.media_folder
    )
    base = base_of(run)
    if (limit := base.fitting(run)) < run.max_length:
        run = run.with_(max_length=limit)
    key = _key(run, sources, base)
    path = files.cached(key, lambda folder: _build(folder, run, sources, base))
    try:
        if _stale(path):
            raise ValueError("a picture or a sound has changed")
        report, encoded, meta = _read(path, base)
    except (OSError, ValueError, TypeError, LorakitError):  # changed, or damaged since: made anew
        files.remove(path)
        path = files.cached(key, lambda folder: _build(folder, run, sources, base))
        report, encoded, meta = _read(path, base)
    return Prepared(run, sources, base, path, report, encoded, meta)


def _read(path: Path, base: BaseModel) -> tuple[DataReport, dict[str, Rows], dict[str, Any]]:
    content = json.loads((path / "report.json").read_text(encoding="utf-8"))
    report = DataReport(**content | {"rejected": [Rejected(**r) for r in content["rejected"]]})
    return report, *rows.read(path / "rows", base.processor)


def _key(run: Run, sources: Mapping[str, Source], base: BaseModel) -> str:
    """SHA-256 of all that the rows follow from: content, settings, tokenizer, template, versions."""
    settings = {name: getattr(run, name) for name in SETTINGS}
    places = {n: (s.name, s.format, s.options, s.identity) for n, s in sources.items()}
    versions = [metadata.version(name) for name in ("transformers", "tokenizers", "datasets")]
    weights = shares(run.data, run.replay)
    if any(weights.values()):
        settings["shares"] = weights
    parts = [FORMAT_VERSION, settings, places, base.reader_hash, base.notes, versions]
    content = json.dumps(parts, default=str).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()[:32]


def _stale(path: Path) -> bool:
    """Whether a picture or a sound that a table names is no longer the one that was encoded."""
    known = json.loads((path / MEDIA).read_text(encoding="utf-8"))
    return any(not Path(file).is_file() or _age(file) != age for file, age in known.items())


def _build(folder: Path, run: Run, sources: Mapping[str, Source], base: BaseModel) -> None:
    """Encodes the rows into a new folder of the cache."""
    sets, report = loading.prepare(
        sources,
        **columns_of(run),
        gives=None if run.task == "auto" else tasks.get(run.task).GIVES,
        seed=run.seed,
        test_fraction=run.test_fraction,
        validation_fraction=run.validation_fraction,
        max_rows=run.max_rows,
        group_by=run.group_by,
        shuffled=run.shuffle_answers,
        folds=run.folds,
        fold=run.fold,
        near=None if run.near_duplicates == "off" else run.near_duplicates,
    )
    name, encoded = encode_sets(run, sets, report, base)
    task = tasks.get(name)
    meta = {
        "task": name,
        "stop_ids": task.stop_ids(rows.uncut(encoded["train"]), base.tokenizer),
        "opening": task.opening(base.tokenizer),
        "classes": _classes(encoded, report.classes)
        if tasks.objective_of(name).HEAD == "labels"
        else [],
    }
    if report.schema in ("tool_calls", "xlam"):
        meta["tools"] = True
    rows.write(folder / "rows", encoded, meta)
    ages = {path: _age(path) for path in media_paths(sets)}
    (folder / MEDIA).write_text(json.dumps(ages), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")


def encode_sets(
    run: Run, sets: Mapping[str, Sequence[Example]], report: DataReport, base: BaseModel
) -> tuple[str, dict[str, Rows]]:
    """(the task, its rows) of sets that are split; rows that give none are added to the report.

    Raises:
        LorakitError: when the model cannot do the task, or training would be pointless.
    """
    schema = registry.load("schemas", report.schema)
    name = run.task
    if name == "auto":
        name = served.task_for(schema, base.config, base.processor, run.model)
    task = tasks.get(name)
    served.maker(name, base.config, run.model)  # says so when they do not go together
    encoded, rejected, notes = rows.encode(
        sets,
        task,
        base.processor if task.MEDIUM else base.tokenizer,
        run.max_length,
        run.group_by,
        **tasks.settings_of(task, run),
    )
    if run.join_documents:
        encoded["train"], note = joined(encoded["train"], task, run.max_length, run.seed)
        notes.append(note)
    weights = {name: w for name, w in shares(run.data, run.replay).items() if w}
    if len(weights) > 1:
        encoded["train"], more = mixed(encoded["train"], weights, run.seed)
        notes += more
    report.rejected += rejected
    report.notes += [*base.notes, *notes]
    return name, encoded


def _classes(encoded: Mapping[str, Rows], order: Sequence[str]) -> list[str]:
    """In the order that the data give; else numbers by their value, then words by the alphabet."""

    def rank(name: str) -> tuple[int, float, str]:
        if name in order:
            return 0, order.index(name), name
        try:
            return 1, float(name), name
        except ValueError:
            return 2, 0.0, name

    return sorted({n for some in encoded.values() for n in some.column("reference")}, key=rank)


def _age(path: str) -> list[int]:
    """Bytes and time of the last change, in nanoseconds."""
    known = Path(path).stat()
    return [known.st_size, known.st_mtime_ns]
