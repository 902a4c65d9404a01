"""How sure a model is of the answers that it gives: their log-probabilities, in nats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lorakit.results import evaluate
from lorakit.run import Run, resolved
from lorakit.tasks import batches
from lorakit.tasks.protocol import Row
from lorakit.tasks.rows import Rows


def answered(
    engine: Any, rows: Rows, meta: Mapping[str, Any], run: Run
) -> tuple[list[str | None], np.ndarray]:
    """(greedy answers, their log-probabilities (n,)) to rows; (None, nan) for a row without a question.

    Of a label task the most probable class and the log of its probability.
    """
    tokens = resolved(run.micro_batch_tokens)
    if rows.classes:
        probabilities = evaluate.token_sums(engine, rows, max_tokens=tokens)[:, 3:]
        names = [rows.classes[i] for i in probabilities.argmax(axis=1)]
        return list(names), np.log(probabilities.max(axis=1))
    ids = evaluate.answer_ids(engine, rows, meta["stop_ids"], run.max_new_tokens)
    answers: list[str | None] = [None] * len(rows)
    confidence = np.full(len(rows), np.nan)
    places = sorted(ids)
    asked = [
        rows[i] | {"ids": np.asarray(rows[i]["ids"])[: rows[i]["answer_start"]]} for i in places
    ]
    confidence[places] = log_probabilities(
        engine,
        asked,
        [ids[i] for i in places],
        meta["stop_ids"],
        run.max_new_tokens,
        max_tokens=tokens,
        inputs=rows.inputs,
    )
    for i in places:
        answers[i] = evaluate.words(ids[i], engine.tokenizer, meta["opening"])
    return answers, confidence


def log_probabilities(
    engine: Any,
    asked: Sequence[Row],
    answers: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    *,
    max_tokens: int = 4096,
    inputs: Callable[..., Any] | None = None,
) -> np.ndarray:
    """log p(answer | prompt) in nats, (n,), summed over the answer's tokens and the end token of one that ended.

    Args:
        asked: rows whose `ids` are the prompts.
        answers: generated ids, without the stop token.
        max_new_tokens: an answer of so many tokens did not end.
        inputs: what makes the model's inputs of a row's media.
    """
    made = []
    for row, answer in zip(asked, answers, strict=True):
        end = [*stop_ids][:1] if len(answer) < max_new_tokens else []
        ids = [*row["ids"], *answer, *end]
        targets = [k >= len(row["ids"]) for k in range(len(ids))]
        made.append({**row, "ids": ids, "targets": targets, "weights": None})
    out = np.zeros(len(made))
    lengths = [len(row["ids"]) for row in made]
    for group in batches.pieces(lengths, 16, max_tokens, engine.packing):
        batch = batches.collate([made[i] for i in group], group, inputs=inputs)
        out[group] = -engine.score_documents(batch)[:, 0]
    return out
