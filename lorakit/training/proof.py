"""Proof that a run may call itself done: what should have moved moved, and a fresh process repeats what was said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import child_environment
from lorakit.results import evaluate
from lorakit.results.ask import tuned
from lorakit.run import Run, resolved
from lorakit.runs.folder import RunFolder
from lorakit.tasks import rows
from lorakit.tasks.batches import Batch
from lorakit.training.loop import State

SAMPLE_ROWS, SAMPLE_ANSWERS = 8, 4  # what a fresh process repeats before a run is done


def unchanged(
    engine: Any, untouched: dict[str, int], state: State, batches: Callable[[], list[Batch]]
) -> dict[str, str]:
    """Proof that training did what it should: finite, everything trained moved, nothing frozen did.

    `untouched` is the engine's fingerprint before training; `batches` gives some to look for what overflows.
    """
    broken = [n for n, w in engine.weights().items() if not np.isfinite(w).all()]
    if broken:
        raise LorakitError(
            f"done is refused: '{broken[0]}' and {len(broken) - 1} other tensors are not finite; "
            "lower learning_rate or use precision=fp32 or bf16"
        )
    applied = state.update - state.skipped
    if applied < 1:
        raise LorakitError(
            f"done is refused: fp16 skipped all {state.skipped} updates "
            f"({engine.first_nonfinite_layer(batches())}); "
            "use bf16 or fp32"
        )
    now = engine.fingerprint()
    trained = {n for n, (_, on) in engine.parameters().items() if on}
    still = sorted(n for n in trained if now[n] == untouched[n])
    moved = sorted(n for n in now.keys() - trained if now[n] != untouched[n])
    if moved:
        raise LorakitError(
            f"done is refused: the frozen tensor '{moved[0]}' changed ({len(moved)} in all)"
        )
    if applied >= 2 and still:
        raise LorakitError(
            f"done is refused: '{still[0]}' did not change in {applied} updates ({len(still)} in all); "
            "does the loss depend on it?"
        )
    out = {
        "finite": f"all {len(trained)} trained tensors",
        "applied": f"{applied} updates, {state.skipped} skipped",
        "frozen": f"{len(now) - len(trained)} tensors, none changed",
    }
    return out | ({"trained": f"{len(trained)} tensors, all changed"} if applied >= 2 else {})


def shared(targets: list[int]) -> dict[str, str]:
    """Proof that every process did its part: how many target tokens each has trained on."""
    idle = [number for number, count in enumerate(targets) if not count]
    if idle:
        raise LorakitError(
            f"done is refused: process {idle[0]} trained on nothing; start again with fewer processes"
        )
    return {"processes": f"all {len(targets)} trained"} if len(targets) > 1 else {}


def sample(engine: Any, sets: Mapping[str, Any], meta: dict, run: Run) -> dict[str, list]:
    """Losses and greedy tokens on a few rows, computed alike here and in a fresh process."""
    some = (sets.get("test") or sets["train"]).first(SAMPLE_ROWS)
    sums = evaluate.token_sums(
        engine, some, max_rows=SAMPLE_ROWS, max_tokens=resolved(run.micro_batch_tokens)
    )
    if some.classes:  # the losses, and what the head makes of each class
        found = np.column_stack([sums[:, 0], np.log(sums[:, 3:].clip(1e-30))])
        return {"losses": found.ravel().tolist(), "answers": []}
    few = some.first(SAMPLE_ANSWERS)
    media = [few.inputs(row, None) for row in few] if few.inputs else ()
    answers = engine.generate(
        evaluate.prompts(few), min(24, run.max_new_tokens), meta["stop_ids"], media
    )
    return {"losses": sums[:, 0].tolist(), "answers": answers}


def repeated(folder: RunFolder, said: dict[str, list], run: Run) -> dict[str, str]:
    """Proof that what was saved works: a fresh process loads it and says the same."""
    command = [sys.executable, "-m", "lorakit.training.proof", str(folder.path)]
    child = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or ["no words"]
        raise LorakitError(
            f"done is refused: what was saved could not be loaded in a fresh process: {last[0]}"
        )
    again = json.loads(child.stdout.strip().splitlines()[-1])
    tolerance = 1e-4 if run.precision == "fp32" else 2e-2
    if not np.allclose(again["losses"], said["losses"], rtol=tolerance, atol=tolerance):
        raise LorakitError(
            "done is refused: the saved adapter, loaded in a fresh process, gives other losses: "
            f"{again['losses'][0]:.5f} instead of {said['losses'][0]:.5f} on the first row"
        )
    if again["answers"] != said["answers"]:
        raise LorakitError(
            "done is refused: the saved adapter, loaded in a fresh process, gives other answers"
        )
    off = max(abs(a - b) for a, b in zip(again["losses"], said["losses"], strict=True))
    answers = f"{len(said['answers'])} answers token by token and " if said["answers"] else ""
    what = "losses" if said["answers"] else "losses and log-probabilities of classes"
    return {
        "reloaded": f"a fresh process repeats {answers}{len(said['losses'])} {what} (largest difference {off:.1e} "
        "nats)"
    }


def _repeat(path: str) -> None:
    engine, _, meta, run = tuned(path)
    sets, _ = rows.read(RunFolder(path).rows, engine.processor)
    print(json.dumps(sample(engine, sets, meta, run)))


if __name__ == "__main__":
    try:
        _repeat(sys.argv[1])
    except LorakitError as failed:
        sys.exit(str(failed))
