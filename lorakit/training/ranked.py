"""Which pairs of a run's data the base ranks right already: there is nothing to learn from them."""

from __future__ import annotations

import numpy as np

from lorakit import engines
from lorakit.common.errors import LorakitError
from lorakit.data.quality import Finding, first, some
from lorakit.planning.setup import setup
from lorakit.run import Run
from lorakit.training.range_test import with_some_rate
from lorakit.training.reference import logps

MOST = 200  # pairs that are asked
EASY = 0.95  # share of pairs ranked right from which it is worth a warning


def already(run: Run, most: int = MOST) -> Finding:
    """How many of the first `most` training pairs the base ranks right, and where they stand.

    Loads the model. Raises `LorakitError` for rows that are no pairs, and whatever keeps a run from starting.
    """
    plan = setup(run)
    if (task := plan.prepared.meta["task"]) != "preferences":
        raise LorakitError(
            f"these rows are for {task}, which has no pairs to rank",
            where=run.data,
            cure="leave --ranked out, or give rows with 'chosen' and 'rejected'",
        )
    rows = plan.prepared.rows["train"].first(most)
    engine = engines.get(plan.settings.engine).load(with_some_rate(plan.settings))
    try:
        chosen, rejected = logps(engine, rows, plan.settings).T
    finally:
        engine.close()
    right = chosen > rejected
    places = zip(rows.column("file"), rows.column("row"), strict=True)
    where = [f"{file}:{row}" for (file, row), yes in zip(places, right, strict=True) if yes]
    words = f"{run.model} ranks {np.mean(right):.0%} of {some(len(rows), 'pair')} right already"
    easy = bool(np.mean(right) >= EASY)
    if easy:
        words += ": there is little left to learn; take pairs that it gets wrong"
    return Finding("warning" if easy else "note", words, first(where), len(where))
