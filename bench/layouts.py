"""One curve, whatever the layout: step losses and speed of 8×1, 4×2 and 2×4 (micro-batch × accumulation), packed
and padded, on the embedded model. `make bench` writes outputs/bench/layouts.json and prints the table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lorakit.common import registry
from lorakit.machine import hardware
from lorakit.planning import choose
from lorakit.run import Run
from lorakit.tasks.dataset import prepare
from lorakit.training.loop import State, train
from lorakit.training.session import batches_of

LAYOUTS = [(size, packing) for packing in (True, False) for size in (8, 4, 2)]


def curve(run: Run) -> list[dict]:
    """The lines of 30 updates at a constant rate."""
    run, _ = choose.resolve(run, hardware.facts())
    engine = registry.load("engines", run.engine).load(run)
    lines: list[dict] = []
    train(
        engine,
        batches_of(prepare(run).rows["train"], run, engine.packing),
        State(),
        lambda update: run.learning_rate,
        lambda state, line: lines.append(line),
    )
    engine.close()
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--data", default="data/triage.jsonl")
    options.add_argument("--out", type=Path, default=Path("outputs/bench/layouts.json"))
    given = options.parse_args()
    curves = {}
    for size, packing in LAYOUTS:
        curves[f"{size}×{8 // size} {'packed' if packing else 'padded'}"] = curve(
            Run(
                model=given.model,
                data=given.data,
                max_length=256,
                rank=8,
                alpha=16,
                learning_rate=1e-3,
                global_batch_size=8,
                micro_batch_size=size,
                packing=packing,
                quantization="none",
                precision="fp32",
                max_updates=30,
            )
        )
    reference = next(iter(curves.values()))
    print(
        f"{'layout':<12} {'update 1':>10} {'update 30':>10} {'largest difference':>20} {'target tokens/s':>16}"
    )
    for name, lines in curves.items():
        off = max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, reference, strict=True))
        speed = sum(x["target_tokens"] for x in lines) / sum(x["seconds"] for x in lines)
        print(
            f"{name:<12} {lines[0]['loss']:10.6f} {lines[-1]['loss']:10.6f} {off:20.1e} {speed:16,.0f}"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(
        json.dumps({n: [x["loss"] for x in lines] for n, lines in curves.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
