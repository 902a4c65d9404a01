"""Scores a finished run again: on its test rows by other metrics, or on rows of another file."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.data import loading
from lorakit.data.example import Rejected
from lorakit.data.matching import columns_of
from lorakit.data.sources import source
from lorakit.results import evaluate
from lorakit.results.open_run import FinishedRun, open_run
from lorakit.results.predict import predict
from lorakit.results.report import score_rows
from lorakit.run import resolved
from lorakit.runs import folder as record
from lorakit.runs.folder import Folder
from lorakit.tasks import rows
from lorakit.tasks.rows import Rows

SHOWN = 20  # rows left out that are listed on the terminal; all stand in the file


def rescore(
    path: str | os.PathLike,
    *,
    data: str | None = None,
    metrics: list | None = None,
    model: str | None = None,
) -> tuple[Path, list[str]]:
    """Scores base and tuned model, and writes the result beside the run's own scores, never over a file.

    Args:
        data: rows to score on instead of the run's test rows. Those that it trained on, and those that cannot be
            used, are left out, counted, and listed in `rejected-NAME.jsonl`.
        metrics: names, or names with options; the run's own when None.
        model: where the base lies now.

    Returns:
        the file written, and a line per metric, with the notes behind.

    Raises:
        LorakitError: the run cannot be opened, or no row is left.
    """
    opened = open_run(path, model=model)
    notes: list[str] = list(opened.notes)
    rejected: list[Rejected] = []
    train, test = opened.rows("train"), opened.rows("test")
    if data:
        test, rejected, more = rows_of(data, opened, train)
        notes += more
    if test is None:
        raise LorakitError(
            "the run has no test rows", where=opened.folder.path, cure="name some with --data"
        )
    chosen = evaluate.choose(
        metrics or opened.run.metrics,
        tasks.metrics_of(opened.meta),
        any(test.column("reference")),
        tasks.objective_of(opened.meta["task"]),
    )
    before, after = (_outcome(opened, test, when) for when in ("before", "after"))
    answers = [r for r in train.column("reference") if r] if train is not None else []
    references = test.column("reference")
    found = evaluate.scores(
        chosen, before, after, references, answers, opened.run.seed, test.column("source")
    )
    target = free_name(opened.folder, Path(data).stem if data else "again", rewrite=not data)
    record.write_json(target, found)
    if rejected:
        listed = target.with_name(target.name.replace("scores", "rejected", 1) + "l")
        record.write_lines(listed, [asdict(row) for row in rejected])
        notes.append(f"{len(rejected)} rows could not be used; all are listed in {listed}")
        notes += [f"{row.where}: {row.reason}" for row in rejected[:SHOWN]]
    lines = [
        f"{s['metric']}: {s['before']} → {s['after']}, {s['difference']} (95 % interval {s['interval']}, "
        f"{s['rows']} rows)"
        for s in score_rows(found)
    ]
    return target, lines + notes


def _outcome(opened: FinishedRun, test: Rows, when: str) -> Any:
    engine = opened.engine(adapted=when == "after")
    try:
        return predict(
            engine,
            test,
            opened.meta,
            engine.tokenizer,
            max_tokens=resolved(opened.run.micro_batch_tokens),
            max_new_tokens=opened.run.max_new_tokens,
            when=when,
        )
    finally:
        engine.close()


def rows_of(
    data: str, opened: FinishedRun, train: Rows | None
) -> tuple[Rows, list[Rejected], list[str]]:
    """(rows of a file that the run never trained on, rows left out, notes).

    Raises `LorakitError` when none is left, and for a class that the run never saw.
    """
    run, task, meta = opened.run, opened.task, opened.meta
    examples, report = loading.load(
        replace(source(data, run.format), media_folder=run.media_folder),
        **columns_of(run),
        gives=task.GIVES,
    )
    reader = opened.processor if task.MEDIUM else opened.tokenizer
    encoded, bad, notes = rows.encode(
        {"train": examples}, task, reader, run.max_length, **tasks.settings_of(task, run)
    )
    rejected = [*report.rejected, *bad]
    sets = [train, opened.rows("validation")]
    seen = {known for some in sets if some is not None for known in some.contents()}
    fresh = [i for i, known in enumerate(encoded["train"].contents()) if known not in seen]
    if not fresh:
        raise LorakitError(
            "the run trained on every row of it; these rows prove nothing",
            setting="--data",
            value=data,
            where=data,
            cure="name rows that it has not seen",
        )
    if len(fresh) < len(encoded["train"]):
        notes.append(f"{len(encoded['train']) - len(fresh)} rows left out: the run trained on them")
    inputs = train.inputs if train is not None else None
    test = Rows(encoded["train"].chosen(fresh).dataset, inputs, meta["classes"])
    unknown = {*test.column("reference")} - {*meta["classes"]} if meta["classes"] else set()
    if unknown:
        raise LorakitError(
            f"the run never saw the class {min(unknown)!r}; it tells apart {', '.join(meta['classes'])}",
            setting="--data",
            value=min(unknown),
            where=data,
            cure="leave these rows out, or train with them",
        )
    return test, rejected, notes


def free_name(folder: Folder, label: str, *, rewrite: bool) -> Path:
    """`scores-LABEL.json`, numbered where that is taken; `scores.json` itself where `rewrite` and it is lost."""
    if rewrite:
        try:
            if not folder.scores:
                return folder / "scores.json"
        except LorakitError:  # damaged
            return folder / "scores.json"
    for number in itertools.count(1):
        suffix = "" if number == 1 else f"-{number}"
        path = folder / f"scores-{label}{suffix}.json"
        if not path.exists():
            return path
    raise AssertionError("itertools.count ends")
