"""Encoded rows on disk, written once: the preview, the training and the evaluation read the same ones."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorakit import tasks
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.quality import LOST
from lorakit.data.sources import SETS
from lorakit.machine.packages import tolerate_new_torchvision
from lorakit.models.rendering import limited_memory
from lorakit.runs.folder import read_meta
from lorakit.tasks.objectives import labels, next_token
from lorakit.tasks.protocol import Document, Row, Task

PARALLEL = 2000  # examples from which more processes pay for their start
REFERENCE = "base_logps.npz"  # the base's log-probabilities, of objectives that need them
GUARDED = 1000  # rows that a task's guards look at


Inputs = Callable[
    [dict, Any], dict[str, np.ndarray]
]  # of a row with a medium, and a generator in training


class Rows(Sequence[Row]):
    """One set of encoded rows, memory-mapped: `rows[i]` is a dict of NumPy arrays, numbers, strings and bytes.

    `documents`: the objective's, what a row is trained on.

    `lengths` (n,): places that the model goes through; `inputs`: what makes the model's inputs of a row's media;
    `classes`: the names of a label task, whose rows also hold `label`, the place of their class among them.
    """

    def __init__(
        self,
        dataset: Any,
        inputs: Inputs | None = None,
        classes: Sequence[str] = (),
        documents: Callable[[Row], list[Document]] = next_token.documents,
    ):
        import pyarrow.compute as pc

        tolerate_new_torchvision()
        self.dataset, self._arrays, self.inputs, self.classes = (
            dataset,
            dataset.with_format("numpy"),
            inputs,
            classes,
        )
        self.documents = labels.documents if classes else documents
        self.reference: np.ndarray | None = None  # (n, documents of a row), see `with_reference`
        self._media = dataset.select_columns(["media"]) if "media" in dataset.column_names else None
        lengths = (
            self.arrow("length")
            if "length" in dataset.column_names
            else pc.list_value_length(self.arrow("ids"))
        )
        self.lengths = lengths.to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices: see `chosen`
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = self._arrays[int(index)]
        if self._media is not None:  # NumPy's bytes lose the zeros at their end
            row["media"] = self._media[int(index)]["media"]
        if self.classes:
            row["label"] = self.classes.index(row["reference"])
        if self.reference is not None:
            row["base_logps"] = self.reference[int(index)]
        return row

    def with_reference(self, logps: np.ndarray) -> Rows:
        """The same rows, which also hold the base's log-probabilities of their documents (n, documents of a row)."""
        rows = Rows(self.dataset, self.inputs, self.classes, self.documents)
        rows.reference = logps
        return rows

    def arrow(self, name: str) -> Any:
        """One column as a pyarrow array."""
        return self.dataset.select_columns([name]).with_format("arrow")[:][name]

    def column(self, name: str) -> list:
        """All values of one column, e.g. `reference`; None where a row lacks it."""
        return (
            self.arrow(name).to_pylist()
            if name in self.dataset.column_names
            else [None] * len(self)
        )

    @property
    def sources(self) -> list[str]:
        """What each row is a piece of, and no evidence beside: its group, else the row of the file."""
        whence = zip(self.column("group"), self.column("file"), self.column("row"), strict=True)
        return [f"{f}:{n}" if group is None else f"group {group}" for group, f, n in whence]

    def contents(self) -> list[bytes]:
        """What each row gives the model, to find equal ones by."""
        media = self._media[:]["media"] if self._media is not None else [[]] * len(self)
        return [
            b"".join([np.asarray(ids, np.int64).tobytes(), *some])
            for ids, some in zip(self.column("ids"), media, strict=True)
        ]

    def chosen(self, indices: Sequence[int] | np.ndarray) -> Rows:
        some = Rows(self.dataset.select(indices), self.inputs, self.classes, self.documents)
        if self.reference is None:
            return some
        return some.with_reference(self.reference[np.asarray(indices, dtype=np.int64)])

    def first(self, n: int) -> Rows:
        return self.chosen(range(min(n, len(self))))


def encode(
    sets: Mapping[str, Sequence[Example]],
    task: Task,
    reader: Any,
    max_length: int,
    group_by: str | None = None,
    **settings: Any,
) -> tuple[dict[str, Rows], list[Rejected], list[str]]:
    """(rows of each set, examples that gave none, notes). Raises `LorakitError` when training would be pointless.

    `reader` and `settings` are what the task's `encode` takes. A row keeps its value of the column `group_by`.
    """
    encoded: dict[str, Rows] = {}
    rejected: list[Rejected] = []
    notes = []
    for name, examples in sets.items():
        encoded[name], bad = _encode(examples, name, task, reader, max_length, group_by, settings)
        rejected += bad
        counts = Counter(k for lost in encoded[name].column("lost") for k in lost or ())
        notes += [f"{name}: {n:,} rows: {LOST[key]}" for key, n in counts.most_common()]
        cut = np.asarray(encoded[name].arrow("cut"))
        if cut.any():
            notes.append(
                f"{name}: {np.count_nonzero(cut)} rows are longer than max_length={max_length}; "
                f"{cut.sum():,} tokens were cut"
            )
        if len(examples) and not len(encoded[name]):
            raise LorakitError(
                f"no {name} row can be used; the first: {bad[0].where}: {bad[0].reason}"
            )
        if len(encoded[name]) > len(examples):
            notes.append(f"{name}: {len(examples)} examples became {len(encoded[name])} rows")
    train = encoded["train"]
    if task.OBJECTIVE == "labels":  # how many classes there are shows in all rows alone
        judged = [{"reference": label} for label in train.column("reference")]
    else:
        judged = uncut(train)
    task.guard(judged, getattr(reader, "tokenizer", reader))
    return encoded, rejected, notes


def uncut(rows: Rows) -> list[dict[str, Any]]:
    """Some rows, the whole ones first: what a task judges a set by."""
    order = np.argsort(np.asarray(rows.arrow("cut")) > 0, kind="stable")[:GUARDED]
    return list(rows.chosen(order).dataset)


def _encode(
    examples: Sequence[Example],
    name: str,
    task: Task,
    reader: Any,
    max_length: int,
    group_by: str | None,
    settings: Mapping[str, Any],
) -> tuple[Rows, list[Rejected]]:
    """Through `datasets`: in several processes when it pays, into memory-mapped files."""
    import datasets

    columns = {**task.COLUMNS}
    if len(examples) and "source" in examples[0].fields:  # a mixture
        columns["source"] = "string"
    features = _features(columns)
    if not len(examples):
        return Rows(
            datasets.Dataset.from_dict({n: [] for n in features}, features).remove_columns("reason")
        ), []
    places = datasets.Dataset.from_dict({"place": range(len(examples))})
    work = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = PARALLEL // 20 if task.MEDIUM else PARALLEL
    with quiet(shown=len(examples) >= most), limited_memory():
        table = places.map(
            _encoded,
            batched=True,
            batch_size=50 if task.MEDIUM else 500,
            remove_columns=["place"],
            features=features,
            fn_kwargs={
                "examples": examples,
                "encode": partial(task.encode, **settings),
                "columns": [*columns],
                "reader": reader,
                "max_length": max_length,
                "group_by": group_by,
            },
            num_proc=work if work > 1 and len(examples) >= most else None,
            desc=f"encoding {name}",
            load_from_cache_file=False,
            keep_in_memory=len(examples) < PARALLEL,
            new_fingerprint=f"lorakit-{name}",
        )
    reasons = table.select_columns(["reason"]).with_format("arrow")[:]["reason"]
    bad = np.flatnonzero(reasons.is_valid()).tolist()
    rejected = [Rejected(r["file"], r["row"], r["reason"]) for r in (table[i] for i in bad)]
    kept = table.select(np.delete(np.arange(len(table)), bad)) if bad else table
    kept = kept.remove_columns("reason")
    if task.complete:
        with quiet():
            kept = task.complete(kept, max_length)
    return Rows(kept), rejected


def _features(columns: Mapping[str, Any]) -> Any:
    """The task's columns, where each row came from, and why it gave nothing."""
    import datasets

    kinds = {"ids": datasets.List(datasets.Value("int32"))}
    for name, kind in {
        **columns,
        "file": "string",
        "row": "int64",
        "group": "string",
        "reason": "string",
    }.items():
        kinds[name] = (
            datasets.List(datasets.Value(kind[0]))
            if isinstance(kind, list)
            else datasets.Value(kind)
        )
    return datasets.Features(kinds)


def _encoded(
    batch: dict[str, list],
    examples: Sequence[Example],
    encode: Callable,
    columns: list[str],
    reader: Any,
    max_length: int,
    group_by: str | None,
) -> dict[str, list]:
    columns = [*columns, "file", "row", "group", "reason"]
    rows: list[dict[str, Any]] = []
    for place in batch["place"]:
        example = examples[place]
        try:
            group = example.fields["columns"].get(group_by) if group_by else None
            own = {"group": None if group is None else str(group)}
            own["source"] = example.fields.get("source")
            rows += [row | own for row in encode(example, reader, max_length)]
        except BadRow as error:
            rows.append({"file": example.file, "row": example.row, "reason": str(error)})
    return {name: [row.get(name) for row in rows] for name in columns}


def _inputs(row: dict, random: Any, make: Callable, processor: Any) -> dict[str, np.ndarray]:
    return make(row, processor, random)


def write(folder: Path, encoded: Mapping[str, Rows], meta: Mapping[str, Any]) -> None:
    """All sets that have rows, and what is known of them, into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        for name, rows in encoded.items():
            if len(rows):
                rows.dataset.save_to_disk(folder / name)
    (folder / "meta.json").write_text(
        json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def read(
    folder: Path, processor: Any = None, sets: Sequence[str] = SETS
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """(set name -> rows, meta). A set without rows is absent. Raises `LorakitError` when there are none here.

    `processor` is the model's, which a task with a medium needs to make its inputs. Only these `sets` are read.
    """
    import datasets

    try:
        meta = read_meta(folder)
        with quiet():
            tables = {n: datasets.load_from_disk(folder / n) for n in sets if (folder / n).is_dir()}
            for table in tables.values():  # Arrow trusts offsets: a damaged one ends the process
                table.data.table.validate(full=True)
            inputs = tasks.get(meta["task"]).inputs
            inputs = partial(_inputs, make=inputs, processor=processor) if inputs else None
            documents, classes = tasks.objective_of(meta["task"]).documents, meta["classes"]
            made = {n: Rows(table, inputs, classes, documents) for n, table in tables.items()}
            if (folder / REFERENCE).exists():
                known = np.load(folder / REFERENCE)
                made = {n: r.with_reference(known[n]) for n, r in made.items()}
            return made, meta
    except Exception as error:  # `datasets` checks little: a damaged folder raises almost anything
        raise LorakitError(
            f"{folder}: the encoded rows are missing or damaged ({type(error).__name__}: {error}); "
            "start the run again under another name"
        ) from None


@contextlib.contextmanager
def quiet(shown: bool = False) -> Iterator[None]:
    """The progress bars of `datasets` as wanted inside, the user's setting restored afterwards."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if hidden else datasets.enable_progress_bars)()
