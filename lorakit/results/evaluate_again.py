"""Scores a finished run again: on its test rows by other metrics, or on rows of another file."""

from __future__ import annotations

import os
from pathlib import Path

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.data import loading
from lorakit.data.matching import columns_of
from lorakit.data.sources import source
from lorakit.models import base_model
from lorakit.results import evaluate
from lorakit.results.ask import tuned
from lorakit.results.evaluate import Outcome
from lorakit.results.predict import predict
from lorakit.results.report import score_rows
from lorakit.run import Run
from lorakit.runs import folder as record
from lorakit.runs.folder import Folder
from lorakit.tasks import rows


def rescore(
    path: str | os.PathLike, *, data: str | None = None, metrics: list | None = None
) -> tuple[Path, list[str]]:
    """(the file written, a line per metric). Rows of `data` that the run trained on are left out and counted."""
    folder = Folder.of(path)
    run, notes = Run.read(folder / "run.yaml"), []
    sets, meta = rows.read(folder / "rows", base_model.reader(run.model)[1])
    task = registry.load("tasks", meta["task"])
    if data:
        examples, _ = loading.load(source(data, run.format), **columns_of(run), gives=task.GIVES)
        engine, tokenizer, _, _ = tuned(folder.path, adapted=False)
        seen = {known for s in ("train", "validation") if s in sets for known in sets[s].contents()}
        encoded, _, notes = rows.encode(
            {"train": examples},
            task,
            engine.processor if task.MEDIUM else tokenizer,
            run.max_length,
            **tasks.settings_of(task, run),
        )
        fresh = [i for i, known in enumerate(encoded["train"].contents()) if known not in seen]
        if not fresh:
            raise LorakitError(
                f"{data}: the run trained on every row of it; these rows prove nothing"
            )
        if len(fresh) < len(encoded["train"]):
            notes.append(
                f"{len(encoded['train']) - len(fresh)} rows left out: the run trained on them"
            )
        sets["test"] = rows.Rows(
            encoded["train"].chosen(fresh).dataset, sets["train"].inputs, meta["classes"]
        )
        unknown = (
            {*sets["test"].column("reference")} - {*meta["classes"]} if meta["classes"] else ()
        )
        if unknown:
            raise LorakitError(
                f"{data}: the run never saw the class {min(unknown)!r}; it tells apart "
                f"{', '.join(meta['classes'])}"
            )
        name = f"scores-{Path(data).stem}.json"
    else:
        if "test" not in sets:
            raise LorakitError(f"{folder.path}: the run has no test rows; name some with --data")
        engine, tokenizer, _, _ = tuned(folder.path, adapted=False)
        name = "scores.json" if metrics is None else "scores-again.json"
    chosen = evaluate.choose(
        metrics or run.metrics,
        task.METRICS,
        any(sets["test"].column("reference")),
        tasks.objective_of(meta["task"]),
    )
    outcomes: list[Outcome] = []
    for when in ("before", "after"):
        if when == "after":
            engine.close()
            engine, *_ = tuned(folder.path)
        outcomes.append(
            predict(
                engine,
                sets["test"],
                meta,
                tokenizer,
                max_tokens=run.micro_batch_tokens,
                max_new_tokens=run.max_new_tokens,
                when=when,
            )
        )
    engine.close()
    answers = [r for r in sets["train"].column("reference") if r]
    found = evaluate.scores(chosen, *outcomes, sets["test"].column("reference"), answers, run.seed)
    record.write_json(folder / name, found)
    lines = [
        f"{s['metric']}: {s['before']} → {s['after']}, {s['difference']} (95 % interval {s['interval']}, "
        f"{s['rows']} rows)"
        for s in score_rows(found)
    ]
    return folder / name, lines + notes
