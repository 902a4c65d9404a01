"""A plan for one T4, part by part, made on any machine: `python bench/t4_plan.py gemma-3n-e2b gemma-3n-e4b`

The settings are those that `lorakit plan` chooses there for rows of `max_length` tokens beside pictures. Activations
are counted by going through the model with the card's own kernels and tensors without content; nothing runs on a card.
"""

from __future__ import annotations

import sys

from lorakit.engines.quantization import nf4
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.planning import choose, host_memory, memory
from lorakit.run import Run

GIB = 2**30
ROOM = 14.56  # GiB that a T4 leaves to programs
KAGGLE = Facts(
    place="kaggle",
    memory=29 * 10**9,
    cards=tuple(hardware.read_cards("Tesla T4, 15360, 7.5")),
    packages=hardware.installed(),
)
PARTS = ("4-bit layers", "embeddings, norms, 16 bits", "adapters, optimizer", "activations")


def asked(model: str) -> Run:
    """A run of a model on pictures, with everything else left open."""
    return Run(model=model, data="-", task="chat_images", engine="torch")


def parts(run: Run) -> dict[str, float]:
    """GiB on the card by part, their sum, what answers take beside the weights, and the host's memory."""
    of = memory.shape(run)
    counted = memory.memory(run, of, KAGGLE)
    linear = of.linear * nf4.bits_per_weight(2) / 8
    found = (linear, counted["weights"] - linear, counted["trained"], counted["working"])
    sizes = dict(zip(PARTS, found, strict=True))
    sizes["total"] = counted["total"]
    sizes["answers, beside the weights"] = memory.generation(run, of)
    sizes["host"] = host_memory.host(run, KAGGLE, of)["total"]
    return {name: size / GIB for name, size in sizes.items()}


def main() -> None:
    for model in sys.argv[1:]:
        run, _ = choose.resolve(asked(model), KAGGLE)
        print(
            f"{model}: {run.precision}, {run.quantization}, rank {run.rank}, {run.micro_batch_tokens} "
            f"tokens at a time, recomputed: {run.gradient_checkpointing}, offload: {run.offload}; of {ROOM} GiB"
        )
        for name, size in parts(run).items():
            print(f"  {name:<32} {size:6.2f} GiB")


if __name__ == "__main__":
    main()
