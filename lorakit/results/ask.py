"""A finished run, loaded again and asked."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorakit import tasks
from lorakit.common import registry
from lorakit.results import evaluate
from lorakit.results.confidence import log_probabilities
from lorakit.results.evidence import trust
from lorakit.results.evidence.form import taught, unknown_form
from lorakit.results.form import acceptor
from lorakit.results.open_run import open_run
from lorakit.run import Run
from lorakit.runs.folder import RunFolder
from lorakit.tasks import batches


def tuned(
    path: str | os.PathLike, *, adapted: bool = True, model: str | None = None
) -> tuple[Any, Any, dict, Run]:
    """(engine, tokenizer, meta, run) of a finished run; with `adapted=False` its base alone.

    `model`: where the base lies now. Raises `LorakitError` as `open_run` does.
    """
    opened = open_run(path, adapted=adapted, model=model)
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
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
    return [reply.text for reply in said]


@dataclass(frozen=True)
class Reply:
    """An answer, and how sure the model is of it."""

    text: str
    log_probability: float  # nats, of the whole answer and its end
    sure: bool | None = (
        None  # whether it may be given without asking a person; None: that was not measured
    )


def ask_surely(
    path: str | os.PathLike,
    questions: list[str],
    *,
    max_new_tokens: int | None = None,
    model: str | None = None,
    held: bool = False,
) -> list[Reply]:
    """As `ask`, and whether each answer is sure enough by the threshold that `lorakit trust` found for this run.

    `held`: answers are held to the form that `lorakit form` found. Raises `LorakitError` where none was.
    """
    folder = RunFolder.of(path)
    form = taught(folder) if held else None
    if held and form is None:
        raise unknown_form(path)
    engine, _, meta, run = tuned(path, model=model)
    accepts = acceptor(form, engine.tokenizer, meta["stop_ids"]) if form else None
    tokens = max_new_tokens or run.max_new_tokens
    said = replies(engine, meta, questions, tokens, surely=True, accepts=accepts)
    engine.close()
    return [replace(reply, sure=trust.sure(folder, reply.log_probability)) for reply in said]


def replies(
    engine: Any,
    meta: dict[str, Any],
    questions: list[str],
    max_new_tokens: int,
    *,
    surely: bool = False,
    accepts: Callable[[Sequence[int]], bool] | None = None,
) -> list[Reply]:
    """The answers of a loaded model to questions that have nothing to do with each other.

    `surely`: with their log-probabilities, at the price of a pass over each answer; else those are nan. `accepts`:
    what answers are held to, see `Engine.generate`.
    """
    task, tokenizer = registry.load("tasks", meta["task"]), engine.tokenizer
    asked = [task.ask(q, engine.processor if task.MEDIUM else tokenizer) for q in questions]
    inputs = (lambda row, _: task.inputs(row, engine.processor, None)) if task.MEDIUM else None
    objective = tasks.objective_of(meta["task"])
    if objective.HEAD == "labels":
        batch = batches.collate(
            asked, range(len(asked)), inputs=inputs, documents=objective.documents
        )
        found = engine.predict(batch)[:, 3:]
        return [
            Reply(f"{meta['classes'][p.argmax()]} ({p.max():.0%})", float(np.log(p.max())))
            for p in found
        ]
    answers = engine.generate(
        [row["ids"] for row in asked],
        max_new_tokens,
        meta["stop_ids"],
        [inputs(row, None) for row in asked] if inputs else (),
        **({"accepts": accepts} if accepts else {}),
    )
    sums = [math.nan] * len(asked)
    if surely:
        sums = log_probabilities(
            engine, asked, answers, meta["stop_ids"], max_new_tokens, inputs=inputs
        ).tolist()
    return [
        Reply(evaluate.words(a, tokenizer, meta["opening"]), s)
        for a, s in zip(answers, sums, strict=True)
    ]
