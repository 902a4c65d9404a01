"""A clean copy of a data file, beside the rows that were left out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorakit.common.errors import BadRow, LorakitError
from lorakit.common.files import atomic_write
from lorakit.data import duplicates, loading
from lorakit.data.example import Example, Rejected
from lorakit.data.matching import columns_of
from lorakit.data.sources import Source, of_run
from lorakit.models.derived import base_of
from lorakit.planning.check import encoder_of, gives_of
from lorakit.run import Run


def fix(run: Run, folder: str | Path | None = None) -> tuple[Path, Path]:
    """(a clean copy as JSON Lines, the rows left out with their reasons), beside the file or in `folder`.

    Left out is what the run would leave out: rows that cannot be read, exact repetitions, rows with nothing to train.
    Raises `LorakitError` when either file is there already: nothing is written over.
    """
    if not isinstance(run.data, str):
        raise LorakitError("one file at a time can be cleaned", setting="data", value=run.data)
    it = of_run(run.data, format=run.format, media_folder=run.media_folder)["train"]
    path = Path(it.path) if Path(it.path).exists() else Path(Path(it.path).name)
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    targets = [
        (Path(folder) if folder else path.parent) / f"{stem}.{kind}.jsonl"
        for kind in ("clean", "rejected")
    ]
    for target in targets:
        if target.exists():
            raise LorakitError(
                f"{target}: is there already; move it away first, nothing is written over"
            )
    with ExitStack() as stack:
        parts = [stack.enter_context(atomic_write(target)) for target in targets]
        kept, rest = (stack.enter_context(open(part, "w", encoding="utf-8")) for part in parts)
        for row in _sifted(run, it):
            if isinstance(row, Rejected):
                rest.write(_line(asdict(row), row))
            else:
                kept.write(_line(row.fields["columns"], row))
    return targets[0], targets[1]


def _sifted(run: Run, it: Source) -> Iterator[Example | Rejected]:
    """The rows of a file, those that a run would not train on as `Rejected`."""
    reading = loading.read(it, **columns_of(run), gives=gives_of(run.task))
    seen: dict[Any, Any] = {}
    encode = encoder_of(run)[0](reading.schema)
    if encode is None:
        raise LorakitError(
            f"{it.name}: name the model that these rows are for, e.g. --set model=vit-base"
        )
    for row in reading.rows:
        if isinstance(row, Example):
            try:
                encode(row, base_of(run).fitting(run))
            except BadRow as error:
                row = Rejected(row.file, row.row, str(error))
            else:
                before = seen.setdefault(duplicates.fingerprint(row), row.where)
                row = (
                    row if before == row.where else Rejected(row.file, row.row, f"repeats {before}")
                )
        yield row


def _line(fields: dict, row: Example | Rejected) -> str:
    """One line of JSON, escaped where UTF-8 cannot write it."""
    try:
        words = json.dumps(fields, ensure_ascii=False) + "\n"
        words.encode("utf-8")
        return words
    except UnicodeEncodeError:
        return json.dumps(fields) + "\n"
    except TypeError as error:
        raise LorakitError(
            f"{row.where}: cannot be written as JSON ({error}); only text can be copied"
        ) from None
