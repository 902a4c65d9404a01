"""Ours against mlx-lm's own trainer (`mlx_lm.lora`): the same base, rows, order, adapters and optimizer, so the same
curve; real tokens a second, memory, the largest difference between the curves. `make bench-mlx`; runs on a Mac too.

Runs take turns (ours, theirs, theirs sorted, ours, …), each in a process of its own; medians. On a CPU the seconds are
CPU time, with Metal those of the clock. `theirs sorted` is mlx-lm's own order: rows of like length together, which
pads least, on other batches, so its curve is another one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lorakit.common import registry
from lorakit.engines.mlx import bases
from lorakit.machine import hardware
from lorakit.models import base_model
from lorakit.planning import choose
from lorakit.run import Run
from lorakit.tasks.batches import Batches
from lorakit.tasks.dataset import prepare
from lorakit.training.loop import State, train
from lorakit.training.session import batches_of

PAD_TO = 32  # as mlx_lm.tuner.trainer.iterate_batches pads
clock = time.perf_counter if mx.metal.is_available() else time.process_time


Trained = Callable[[], tuple[list[float], int]]  # trains; (loss of each update, real tokens)


def ours(engine: Any, batches: Batches, run: Run) -> Trained:
    def go() -> tuple[list[float], int]:
        lines: list[dict] = []
        train(
            engine,
            batches,
            State(),
            lambda update: run.learning_rate,
            lambda state, line: lines.append(line),
        )
        return [x["loss"] for x in lines], sum(
            len(b.ids) for u in range(len(batches)) for b in batches[u]
        )

    return go


def theirs(engine: Any, batches: Batches, run: Run, own_order: bool) -> Trained:
    """The same by mlx-lm's trainer, its LoRA layers begun with the engine's tensors. Its mask counts one token of
    padding in every row; a length one shorter leaves that out."""
    from mlx.optimizers import AdamW
    from mlx_lm.tuner import TrainingArgs, linear_to_lora_layers
    from mlx_lm.tuner import train as mlx_train
    from mlx_lm.tuner.trainer import iterate_batches

    model, _ = bases.read_base(bases.files(run.model), base_model.config(run.model))
    if run.quantization == "affine4":
        bases.quantize(model)
    model.set_dtype({"fp32": mx.float32, "bf16": mx.bfloat16}[run.precision])
    model.freeze()
    linear_to_lora_layers(
        model,
        0,
        {
            "rank": run.rank,
            "scale": run.alpha / run.rank,
            "dropout": 0.0,
            "keys": list(engine.layers),
        },
    )
    begin = [
        (f"{name}.lora_{k.lower()}", layer[f"lora_{k}"].T)
        for name, layer in engine.layers.items()
        for k in "AB"
    ]
    model.load_weights(begin, strict=False)
    engine.close()
    mx.eval(model.parameters())
    rows = [
        (np.asarray(row["ids"]).tolist(), int(np.flatnonzero(row["targets"])[0]))
        for row in batches.rows
    ]
    tokens: list[int] = []

    def same_rows(*args: Any, **kwargs: Any) -> Iterator[tuple[mx.array, mx.array]]:
        for update in range(len(batches)):
            yield batch_of([rows[i] for i in batches.indices(update)])

    def batch_of(chosen: list[tuple[list[int], int]]) -> tuple[mx.array, mx.array]:
        width = 1 + -(-max(len(ids) for ids, _ in chosen) // PAD_TO) * PAD_TO
        ids = mx.array([ids + [0] * (width - len(ids)) for ids, _ in chosen])
        tokens.append(sum(len(ids) for ids, _ in chosen))
        return ids, mx.array([(start, len(ids) - 1) for ids, start in chosen])

    def sorted_rows(*args: Any, **kwargs: Any) -> Iterator[tuple[mx.array, mx.array]]:
        for ids, places in iterate_batches(*args, **{**kwargs, "seed": 0}):
            tokens.append(int(places[:, 1].sum().item()))
            yield ids, places - mx.array([0, 1])

    losses: list[float] = []
    watch = type(
        "Watch",
        (),
        {
            "on_train_loss_report": lambda self, line: losses.append(line["train_loss"]),
            "on_val_loss_report": lambda self, line: None,
        },
    )()
    given = TrainingArgs(
        batch_size=run.global_batch_size,
        iters=len(batches),
        steps_per_report=1,
        steps_per_save=10**9,
        max_seq_length=run.max_length + PAD_TO,
        adapter_file="/dev/null",
        grad_checkpoint=run.gradient_checkpointing is True,
    )

    def go() -> tuple[list[float], int]:
        mlx_train(
            model,
            AdamW(run.learning_rate, weight_decay=0.0, bias_correction=True),
            rows,
            args=given,
            iterate_batches=sorted_rows if own_order else same_rows,
            training_callback=watch,
        )
        return losses, sum(tokens)

    return go


WAYS = {
    "ours": ours,
    "theirs": partial(theirs, own_order=False),
    "theirs sorted": partial(theirs, own_order=True),
}


def one(run: Run, way: str) -> dict[str, Any]:
    """One run of one way; loading is not counted, tracing and compiling are."""
    run, _ = choose.resolve(run, hardware.facts())
    engine = registry.load("engines", run.engine).load(run)
    batches = batches_of(prepare(run).rows["train"], run, engine.packing)
    go = WAYS[way](engine, batches, run)
    del engine
    mx.clear_cache()
    mx.reset_peak_memory()
    start = clock()
    losses, tokens = go()
    seconds = clock() - start
    return {
        "losses": losses,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "memory": mx.get_peak_memory(),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--data", default="data/triage.jsonl")
    options.add_argument("--updates", type=int, default=30)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--quantization", default="none", choices=["none", "affine4"])
    options.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options.add_argument("--max-length", type=int, default=256)
    options.add_argument("--out", type=Path, default=Path("outputs/bench/mlx.json"))
    options.add_argument("--way", choices=WAYS, help="one run of one way, as JSON")
    given = options.parse_args()
    run = Run(
        model=given.model,
        data=given.data,
        engine="mlx",
        max_length=given.max_length,
        rank=8,
        alpha=16,
        learning_rate=1e-3,
        global_batch_size=8,
        max_grad_norm=None,
        quantization=given.quantization,
        precision=given.precision,
        max_updates=given.updates,
        gradient_checkpointing=False,
    )
    if given.way:
        print(json.dumps(one(run, given.way)))
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(given.repeats):
        for way, runs in found.items():
            said = subprocess.run(
                [sys.executable, *sys.argv, "--way", way], capture_output=True, text=True
            )
            if said.returncode:
                sys.exit(said.stderr)
            runs.append(json.loads(said.stdout.strip().splitlines()[-1]))
    report(found)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1))


def report(found: dict[str, list[dict]]) -> None:
    def median(way: str, name: str) -> float:
        return statistics.median(run[name] for run in found[way])

    print(
        f"{'':<14} {'tokens/s':>10} {'times':>7} {'peak MB':>9} {'first loss':>11} {'last loss':>10} {'off':>8}"
    )
    for way, runs in found.items():
        losses, mine = runs[0]["losses"], found["ours"][0]["losses"]
        off = max(abs(a - b) for a, b in zip(losses, mine, strict=True))
        print(
            f"{way:<14} {median(way, 'tokens_per_second'):10,.0f} "
            f"{median('ours', 'tokens_per_second') / median(way, 'tokens_per_second'):7.2f} "
            f"{median(way, 'memory') / 1e6:9.1f} {losses[0]:11.5f} {losses[-1]:10.5f} {off:8.1e}"
        )


if __name__ == "__main__":
    main()
