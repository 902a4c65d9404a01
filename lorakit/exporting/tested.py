"""An exported model on every test row of its run, in the library that reads it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.exporting import measure, target
from lorakit.exporting.messages import read
from lorakit.exporting.proof import ProofRow, proof_of
from lorakit.exporting.source import source
from lorakit.results.evaluate import Outcome


def tested(folder: str | os.PathLike, run: str | os.PathLike | None = None) -> Outcome:
    """Losses without answers. `run`: where the run lies now, if not where it was exported from.

    Raises `LorakitError` where there are no test rows.
    """
    content = read(folder)
    opened = source(run or content["run"])
    test = opened.opened.rows("test")
    if test is None or opened.classes:
        raise LorakitError(
            f"has no test rows with words that {folder} could be scored on",
            where=opened.folder.path,
            cure="train with test_fraction or test_data",
        )
    proof = proof_of(opened)
    rows = [
        ProofRow(row["ids"].tolist(), [False, *map(bool, row["targets"][1:])], True) for row in test
    ]
    proof.rows.extend(rows)  # so that the runtime makes room for the longest
    runtime = target.named(content["target"]).load(Path(folder), proof)
    sums = [[measure.nats(runtime.logits(row.ids), row), sum(row.targets), np.nan] for row in rows]
    return Outcome(np.array(sums, dtype=np.float64), [None] * len(rows), test.sources)
