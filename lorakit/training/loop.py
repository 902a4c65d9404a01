"""The loop. Everything else (checkpoints, validation, time limits, screens) hangs on `after_update`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.tasks.batches import Batch, Batches, with_mean_ratio


@dataclass
class State:
    """Where a run stands; with the engine's own state, all that a checkpoint needs."""

    update: int = 0  # updates done
    target_tokens: int = 0  # trained so far
    seconds: float = 0.0  # spent in updates
    skipped: int = 0  # updates that fp16 could not apply


def train(
    engine: Any,
    batches: Batches | Sequence[list[Batch]],
    state: State,
    rate: Callable[[int], float],
    after_update: Callable[[State, dict], bool],
) -> State:
    """Runs updates `state.update` to `len(batches)`, or until `after_update(state, line)` returns True.

    The loss of an update is the sum over its targets divided once by their number. Raises `LorakitError` when it is
    not finite.
    """
    while state.update < len(batches):
        start, total, count = time.perf_counter(), 0.0, 0
        for batch in with_mean_ratio(engine, batches[state.update]):
            loss, targets = engine.backward(batch)
            total, count = total + loss, count + targets
        total, count = engine.reduce(total, count)
        if not math.isfinite(total):
            raise LorakitError(
                f"the loss became {total} at update {state.update + 1}: "
                f"{engine.first_nonfinite_layer(batches[state.update])}; lower learning_rate "
                f"({rate(state.update):g} now), or use precision=fp32 or bf16"
            )
        norm, skipped = engine.update(rate(state.update), count)
        seconds = time.perf_counter() - start
        line = {
            "update": state.update + 1,
            "loss": total / max(count, 1),
            "target_tokens": count,
            "learning_rate": rate(state.update),
            "grad_norm": norm,
            "tokens_per_second": count / seconds,
            "seconds": seconds,
            "memory_bytes": engine.memory(),
            "skipped": skipped,
        }
        state.update += 1
        state.target_tokens += count
        state.seconds += seconds
        state.skipped += skipped
        if after_update(state, line):
            break
    return state
