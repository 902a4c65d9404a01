"""Encoded rows on disk, written once: the preview, the training and the evaluation read the same ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.data import SETS
from lorakit.errors import BadRow, LorakitError
from lorakit.example import Example, Rejected


class Rows(Sequence):
    """One set of encoded rows, memory-mapped: `rows[i]` is a dict of NumPy arrays, numbers and strings."""

    def __init__(self, dataset: Any):
        self._plain, self._arrays = dataset, dataset.with_format("numpy")
        self.lengths = np.asarray([len(ids) for ids in dataset.with_format("arrow")["ids"]], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._plain)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._arrays[int(index)]

    def column(self, name: str) -> list:
        """All values of one column, e.g. `reference`; None where a row lacks it."""
        return list(self._plain[name]) if name in self._plain.column_names else [None] * len(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


def encode(sets: Mapping[str, Sequence[Example]], task: Any, tokenizer: Any, max_length: int
           ) -> tuple[dict[str, list[dict]], list[Rejected], list[str]]:
    """(rows of each set, examples that gave none, notes). Raises `LorakitError` when training would be pointless."""
    encoded: dict[str, list[dict]] = {}
    rejected: list[Rejected] = []
    notes = []
    for name, examples in sets.items():
        encoded[name], known = [], len(rejected)
        for example in examples:
            try:
                encoded[name] += task.encode(example, tokenizer, max_length)
            except BadRow as error:
                rejected.append(Rejected(example.file, example.row, str(error)))
        cut = [row["cut"] for row in encoded[name] if row["cut"]]
        if cut:
            notes.append(f"{name}: {len(cut)} rows are longer than max_length={max_length}; "
                         f"{sum(cut):,} tokens were cut")
        if examples and not encoded[name]:
            first = rejected[known]
            raise LorakitError(f"no {name} row can be used; the first: {first.where}: {first.reason}")
        if len(encoded[name]) > len(examples):
            notes.append(f"{name}: {len(examples)} examples became {len(encoded[name])} rows")
    task.guard(encoded["train"], tokenizer)
    return encoded, rejected, notes


def write(folder: Path, encoded: Mapping[str, Sequence[dict]], meta: Mapping[str, Any]) -> None:
    """All sets and what is known of them, under a temporary name first: half a folder is never read."""
    import datasets

    part = folder.with_name(folder.name + f".part{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    kinds = {"ids": datasets.Sequence(datasets.Value("int32")), "targets": datasets.Sequence(datasets.Value("bool"))}
    with quiet(datasets):
        for name, rows in encoded.items():
            if rows:
                columns = {k: [row.get(k) for row in rows] for k in {k: None for row in rows for k in row}}
                table = datasets.Dataset.from_dict(columns)
                table.cast(datasets.Features({**table.features, **kinds})).save_to_disk(part / name)
    (part / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def read(folder: Path) -> tuple[dict[str, Rows], dict[str, Any]]:
    """(set name -> rows, meta). A set without rows is absent."""
    import datasets

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    with quiet(datasets):
        sets = {n: Rows(datasets.load_from_disk(folder / n)) for n in SETS if (folder / n).is_dir()}
    return sets, meta


class quiet:
    """No progress bars of the library inside, the user's setting restored afterwards."""

    def __init__(self, datasets: Any):
        self.datasets = datasets

    def __enter__(self):
        self.shown = self.datasets.are_progress_bars_enabled() if hasattr(
            self.datasets, "are_progress_bars_enabled") else not self.datasets.are_progress_bars_disabled()
        self.datasets.disable_progress_bars()

    def __exit__(self, *_):
        if self.shown:
            self.datasets.enable_progress_bars()
