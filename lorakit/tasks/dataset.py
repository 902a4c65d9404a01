"""The data of a run, made once for its content and settings: notebook, run and repetition read the same rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common import files, registry
from lorakit.common.locations import PACKAGE
from lorakit.data import loading
from lorakit.data.example import Example, Rejected
from lorakit.data.loading import DataReport
from lorakit.models import base_model
from lorakit.run import Run
from lorakit.tasks import rows

# The settings that decide which rows there are and how they are encoded.
SETTINGS = (
    "columns",
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
)
MEDIA = "media.json"  # the files that rows are made of beside the data's own
MAKERS = (
    "data/example.py",
    "data/media.py",
    "data/loading.py",
    "data/minhash.py",
    "data/formats",
    "data/schemas",
    "tasks",
)


class Prepared:
    """What `lorakit check`, the preview and the run itself look at."""

    def __init__(self, run: Run):
        self._config = base_model.config(run.model)
        self.tokenizer, self.processor, self._notes = base_model.reader(run.model, self._config)
        self._run, self._sources = (
            run,
            loading.sources(run.data, run.validation_data, run.test_data, run.format),
        )
        self.path = files.cached(self._key(), self._build)
        if self._stale():
            files.remove(self.path)
            self.path = files.cached(self._key(), self._build)
        content = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        self.report = DataReport(
            **content | {"rejected": [Rejected(**r) for r in content["rejected"]]}
        )
        self.rows, self.meta = rows.read(self.path / "rows", self.processor)

    def _key(self) -> str:
        """SHA-256 of all that the rows follow from: content, settings, tokenizer, template and the code itself."""
        settings = {name: getattr(self._run, name) for name in SETTINGS}
        places = {n: (s.name, s.format, s.options, s.identity) for n, s in self._sources.items()}
        reader = [self._config.model_type, str(self.processor and self.processor.to_dict())]
        if self.tokenizer:
            reader += [
                self.tokenizer.backend_tokenizer.to_str(),
                self.tokenizer.chat_template,
                str(self.tokenizer.special_tokens_map),
            ]
        code = [
            p.read_text(encoding="utf-8")
            for m in MAKERS
            for p in sorted((PACKAGE / m).glob("*.py") if (PACKAGE / m).is_dir() else [PACKAGE / m])
        ]
        versions = [metadata.version(name) for name in ("transformers", "tokenizers", "datasets")]
        words = json.dumps([settings, places, reader, self._notes, code, versions], default=str)
        return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _stale(self) -> bool:
        """Whether a picture or a sound that a table names is no longer the one that was encoded."""
        known = json.loads((self.path / MEDIA).read_text(encoding="utf-8"))
        return any(not Path(path).is_file() or _age(path) != age for path, age in known.items())

    def _build(self, folder: Path) -> None:
        run = self._run
        gives = None if run.task == "auto" else registry.load("tasks", run.task).GIVES
        sets, report = loading.prepare(
            self._sources,
            columns=run.columns,
            gives=gives,
            seed=run.seed,
            test_fraction=run.test_fraction,
            validation_fraction=run.validation_fraction,
            max_rows=run.max_rows,
            group_by=run.group_by,
            shuffled=run.shuffle_answers,
            folds=run.folds,
            fold=run.fold,
        )
        schema = registry.load("schemas", report.schema)
        name = (
            run.task
            if run.task != "auto"
            else base_model.task_for(schema, self._config, self.processor, run.model)
        )
        task = registry.load("tasks", name)
        base_model.maker(name, self._config, run.model)  # says so when they do not go together
        encoded, rejected, notes = rows.encode(
            sets,
            task,
            self.processor if task.MEDIUM else self.tokenizer,
            run.max_length,
            run.group_by,
            **tasks.settings_of(task, run),
        )
        report.rejected += rejected
        report.notes += self._notes + notes
        classes = (
            sorted({c for some in encoded.values() for c in some.column("reference")})
            if tasks.objective_of(name).HEAD == "labels"
            else []
        )
        rows.write(
            folder / "rows",
            encoded,
            {
                "task": name,
                "stop_ids": task.stop_ids(rows.uncut(encoded["train"]), self.tokenizer),
                "opening": task.opening(self.tokenizer),
                "classes": classes,
            },
        )
        (folder / MEDIA).write_text(
            json.dumps({path: _age(path) for path in loading.media_paths(sets)}), encoding="utf-8"
        )
        (folder / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")

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
        found = loading.stream(
            self._sources["train"],
            DataReport(""),
            columns=self._run.columns,
            gives=registry.load("schemas", self.report.schema).GIVES,
        )
        return list(islice((row for row in found if isinstance(row, Example)), n))

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


def _age(path: str) -> list[int]:
    """Bytes and time of the last change, in nanoseconds."""
    known = Path(path).stat()
    return [known.st_size, known.st_mtime_ns]


def prepare(run: Run) -> Prepared:
    """Loads, checks, splits and encodes the data of a run. Raises `LorakitError` naming file and row."""
    return Prepared(run)
