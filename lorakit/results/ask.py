"""A finished run, loaded again and asked."""

from __future__ import annotations

import os
from typing import Any

from lorakit import tasks
from lorakit.common import registry
from lorakit.results import evaluate
from lorakit.results.open_run import open_run
from lorakit.run import Run
from lorakit.tasks import batches


def tuned(
    path: str | os.PathLike, *, adapted: bool = True, model: str | None = None
) -> tuple[Any, Any, dict, Run]:
    """(engine, tokenizer, meta, run) of a finished run; with `adapted=False` its base alone.

    `model`: where the base lies now. Raises `LorakitError` as `open_run` does.
    """
    opened = open_run(path, adapted=adapted, model=model)
    engine = opened.engine(adapted=adapted)
    return engine, engine.tokenizer, opened.meta, opened.run


def ask(
    path: str | os.PathLike,
    questions: str | list[str],
    *,
    adapted: bool = True,
    max_new_tokens: int | None = None,
    model: str | None = None,
) -> list[str]:
    """Greedy answers of a tuned model (or of its base) to questions, or continuations of plain text; of a classifier
    the class, with its probability. Where a task is about pictures or sound, a question begins with a file's path."""
    engine, _, meta, run = tuned(path, adapted=adapted, model=model)
    questions = [questions] if isinstance(questions, str) else questions
    said = replies(engine, meta, questions, max_new_tokens or run.max_new_tokens)
    engine.close()
    return said


def replies(
    engine: Any, meta: dict[str, Any], questions: list[str], max_new_tokens: int
) -> list[str]:
    """The answers of a loaded model to questions that have nothing to do with each other."""
    task, tokenizer = registry.load("tasks", meta["task"]), engine.tokenizer
    asked = [task.ask(q, engine.processor if task.MEDIUM else tokenizer) for q in questions]
    inputs = (lambda row, _: task.inputs(row, engine.processor, None)) if task.MEDIUM else None
    objective = tasks.objective_of(meta["task"])
    if objective.HEAD == "labels":
        batch = batches.collate(
            asked, range(len(asked)), inputs=inputs, documents=objective.documents
        )
        found = engine.predict(batch)[:, 3:]
        return [f"{meta['classes'][p.argmax()]} ({p.max():.0%})" for p in found]
    answers = engine.generate(
        [row["ids"] for row in asked],
        max_new_tokens,
        meta["stop_ids"],
        [inputs(row, None) for row in asked] if inputs else (),
    )
    return [evaluate.words(a, tokenizer, meta["opening"]) for a in answers]
