"""Answers for evaluation, batched, beside the same ones a row at a time: CPU seconds on one thread.

    python bench/generate.py                             a Llama of 42 M parameters, 16 prompts of about 80 tokens

`alone` is the engine with one prompt, `plain` transformers' `generate` over PEFT's modules with one prompt. Medians;
the three take turns. Random weights name no end token, so that every answer has its full length.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch: two threads on a shared machine swing by ten times
)

import numpy as np
import peers
import torch

from lorakit import Run
from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import lora


def main() -> None:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--shape", default="40m", choices=peers.SHAPES)
    found.add_argument("--rows", type=int, default=16)
    found.add_argument(
        "--tokens", type=int, nargs="+", default=[32, 128], help="new ones of each answer"
    )
    found.add_argument("--repeats", type=int, default=3)
    given = found.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peers.lay(Path(folder), given.shape, "synthetic", given.rows, 1, "alpaca")
        engine = load(
            Run(
                model=f"{folder}/base",
                data="-",
                precision="bf16",
                quantization="none",
                rank=peers.RANK,
                alpha=peers.RANK,
                target_modules=peers.TARGETS,
                gradient_checkpointing=False,
                packing=True,
                max_length=peers.LONGEST,
                micro_batch_size=8,
                micro_batch_tokens=4096,
            )
        )
    rng = np.random.default_rng(0)
    prompts = [
        rng.integers(200, 4000, n).tolist() for n in sorted(rng.integers(60, 101, given.rows))
    ]

    def plain(length: int) -> list[list[int]]:
        with torch.no_grad(), engine.passes.evaluating(), lora.as_peft():
            return [
                engine.model.generate(
                    input_ids=torch.tensor([p]),
                    attention_mask=torch.ones(1, len(p)).long(),
                    max_new_tokens=length,
                    do_sample=False,
                )[0, len(p) :].tolist()
                for p in prompts
            ]

    ways = {
        "together": lambda n: engine.generate(prompts, n, []),
        "alone": lambda n: [engine.generate([p], n, [])[0] for p in prompts],
        "plain": plain,
    }
    engine.model.generation_config.eos_token_id = None
    ways["together"](2)
    for length in given.tokens:
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.repeats):
            for way, answers in ways.items():
                begin = time.process_time()
                assert [len(a) for a in answers(length)] == [length] * given.rows
                spent[way].append(time.process_time() - begin)
        median = {way: statistics.median(times) for way, times in spent.items()}
        print(
            f"{length} tokens: "
            + ", ".join(
                f"{way} {s:.2f} s ({min(spent[way]):.2f}-{max(spent[way]):.2f}), "
                f"{s / median['together']:.1f}x"
                for way, s in median.items()
            )
        )


if __name__ == "__main__":
    main()
