"""The base's log-probabilities of every answer, computed once before training and kept beside the rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lorakit.common.files import atomic_write
from lorakit.engines.protocol import Engine
from lorakit.machine.distributed import World
from lorakit.run import Run
from lorakit.tasks import batches
from lorakit.tasks.rows import REFERENCE, Rows


def with_reference(
    engine: Engine, sets: Mapping[str, Rows], run: Run, folder: Path, world: World
) -> Mapping[str, Rows]:
    """The sets with what an objective that compares with the base needs; other objectives: the same sets.

    Before the first update an adapter adds nothing, so the loaded engine is the base: there is no second copy of it.
    A resumed run reads what is in `folder`. How many pairs the base ranks right is noted in the engine's `notes`.
    """
    if not engine.objective.REFERENCE:
        return sets
    path = folder / REFERENCE
    known = world.broadcast_from_rank0(lambda: {**np.load(path)} if path.exists() else None)
    if known is None:
        known = {name: logps(engine, rows, run) for name, rows in sets.items()}
        if world.first and folder.is_dir():
            with atomic_write(path) as part, open(part, "wb") as file:
                np.savez(file, **known)
    chosen, rejected = known["train"].T
    engine.notes["reference"] = (
        "the base",
        f"its log-probabilities of {len(chosen):,} answers, and of as many mismatched ones, are known"
        if engine.objective.MEAN_RATIO
        else f"it gives the chosen answer the higher probability in {(chosen > rejected).mean():.0%} of "
        f"{len(chosen):,} training pairs already",
    )
    return {name: rows.with_reference(known[name]) for name, rows in sets.items()}


def logps(engine: Engine, rows: Rows, run: Run) -> np.ndarray:
    """(n, documents of a row) float64, in nats; mismatched documents count."""
    size, tokens = int(run.micro_batch_size), int(run.micro_batch_tokens)  # of a resolved run
    made = batches.in_order(rows, rows.lengths, size, tokens, engine.packing, engine.share)
    found = []
    for batch in made:
        known = -engine.score_documents(batch)[:, 0]
        if batch.mismatched:  # side by side: (D, 2)
            known = np.stack([known, -engine.score_documents(batch.mismatched)[:, 0]], axis=1)
        found.append((batch.rows[batch.starts], known, len(batch.starts)))
    if engine.share[1] > 1:
        found = [one for some in engine.gather(found) for one in some]
    out: dict[int, np.ndarray] = {}
    for indices, known, count in found:
        out.update(zip(indices.tolist(), known.reshape(count, -1), strict=True))
    return np.stack([out[index] for index in range(len(rows))])
