"""What a model does on a set of rows: the sums of its losses, and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm

from lorakit.results import evaluate
from lorakit.results.evaluate import Outcome
from lorakit.tasks.rows import Rows


def predict(
    engine: Any,
    rows: Rows,
    meta: Mapping[str, Any],
    tokenizer: Any,
    *,
    max_tokens: int,
    max_new_tokens: int,
    when: str = "",
    visible: bool = True,
    generate: bool = True,
) -> Outcome:
    """The outcome of a model on `rows`, with a progress bar named after `when`.

    Args:
        meta: what was noted when the rows were encoded: `stop_ids` and `opening`.
        max_tokens: tokens of a micro-batch.
        max_new_tokens: of each generated answer.
        visible: whether the bar is drawn; one process of several draws it.
        generate: whether answers are generated; without them only losses are known.
    """
    if not generate and not rows.classes:
        sums = evaluate.token_sums(engine, rows, max_tokens=max_tokens)
        return Outcome(sums, [None] * len(rows), rows.sources)
    questions = sum(start is not None for start in rows.column("answer_start"))
    with tqdm(
        total=questions,
        desc=f"answers {when}".strip(),
        unit="row",
        mininterval=0.5,
        disable=not visible or not questions,
    ) as bar:
        sums = evaluate.token_sums(engine, rows, max_tokens=max_tokens)
        if rows.classes:
            return Outcome.of_classes(sums, rows.classes, rows.sources)
        answers = evaluate.generate(
            engine,
            rows,
            tokenizer,
            meta["stop_ids"],
            max_new_tokens,
            opening=meta["opening"],
            progress=lambda done: bar.update(done - bar.n),
        )
        pairs = sums[:, 3:] if "pairs" in engine.objective.MEASURES else None
        return Outcome(sums[:, :3], answers, rows.sources, pairs=pairs)
