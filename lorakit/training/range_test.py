"""`learning_rate: auto`: a short range test on the run's own rows (arXiv 1506.01186 §3.3), before the first update.

The rate grows over a few decades while the same few updates are repeated. Each loss is divided by the first one of the
same rows, so that the curve shows the rate and not the rows. What is found is a tenth of the rate where the curve is
lowest: beyond it training becomes unstable. Everything is put back afterwards, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.engines.protocol import Engine
from lorakit.machine.distributed import World
from lorakit.planning.unusual import USUAL_RATE
from lorakit.results.plots import smooth
from lorakit.run import Run
from lorakit.runs.folder import RunFolder
from lorakit.tasks.batches import Batch, Batches, with_mean_ratio
from lorakit.training import resume

UPDATES, ROWS_REPEATED = 40, 4  # updates of the test; of which so many are different
SPAN = (1 / 20, 500)  # of the method's usual rate: from where to where
WORST = 1.5  # times the first loss, at which the test ends
LEAST = 0.98  # the curve has to fall below this
SMOOTHED, MARGIN = 4, 10


def with_rate(engine: Engine, batches: Batches, run: Run, folder: RunFolder, world: World) -> Run:
    """The run with its learning rate: in place of `auto` what the test finds. A resumed run keeps what it began with.

    The rate is noted in the engine's `notes`, the curve in the run's record.
    """
    if run.learning_rate != "auto":
        return run
    known = world.broadcast_from_rank0(
        lambda: folder.record["range_test"] if resume.can_resume(folder) else None
    )
    if known is None:
        rates, losses = measured(engine, batches, run)
        rate, reason = chosen(rates, losses)
        known = {"rates": rates, "losses": losses, "chosen": rate, "reason": reason}
        folder.note(range_test=known)
    engine.notes["learning_rate"] = (known["chosen"], known["reason"])
    return run.with_(learning_rate=known["chosen"])


def with_some_rate(run: Run) -> Run:
    """The run with a number for `auto`: optimizers want one when they are made, and get another at every update."""
    return run.with_(learning_rate=USUAL_RATE[run.method]) if run.learning_rate == "auto" else run


def measured(engine: Engine, batches: Batches, run: Run) -> tuple[list[float], list[float]]:
    """(learning rates, loss at each relative to the first loss of the same rows). The engine is left as it was."""
    low, high = (USUAL_RATE[run.method] * times for times in SPAN)
    repeated: list[Sequence[Batch]] = [batches[i] for i in range(min(ROWS_REPEATED, len(batches)))]
    rates, losses, first = [], [], dict[int, float]()
    before: dict[str, Any] = {n: np.array(v) for n, v in engine.state().items()}  # not views
    for step, rate in enumerate(np.geomspace(low, high, UPDATES).tolist()):
        place, total, count = step % len(repeated), 0.0, 0
        for batch in with_mean_ratio(engine, repeated[place]):
            loss, targets = engine.backward(batch)
            total, count = total + loss, count + targets
        total, count = engine.reduce(total, count)
        mean = total / max(count, 1)
        worse = not math.isfinite(mean) or mean > WORST * first.setdefault(place, mean)
        engine.update(rate, count)
        if worse:
            break
        rates.append(rate)
        losses.append(mean / first[place])
    engine.restore(before)
    engine.targets_trained = 0
    return rates, losses


def chosen(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    """(the rate with two digits, why). Raises `LorakitError` where the loss falls at none."""
    curve = smooth(losses, SMOOTHED)
    place = int(np.argmin(curve)) if curve else 0
    if not curve or curve[place] > LEAST:
        raise LorakitError(
            f"the loss falls at no learning rate from {rates[0]:.1g} to {rates[-1]:.1g}"
            if rates
            else "the loss is not finite at the lowest learning rate",
            setting="learning_rate",
            value="auto",
            cure="look at the rows with lorakit check, or name a rate",
        )
    rate = float(f"{rates[place] / MARGIN:.2g}")
    reason = (
        f"a range test of {len(rates)} updates: the loss is lowest at {rates[place]:.2g} "
        f"({curve[place]:.2f} of where it began); a tenth of that"
    )
    return rate, reason
