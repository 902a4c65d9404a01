"""What computes: one module each.

`fits(facts, spec)` returns "" or the reason why this engine cannot serve here; `suits(facts)` returns how well it does
(the highest is chosen; 0: only when asked for) and why. `load(run, *, adapter=None, classes=())` returns an object with
the methods of `Engine` below. Losses travel as (sum, count) over target tokens, or rows, and are divided once. What an
engine learns beside words, (objective, medium) of a task, it lists in `SERVES`, and in `REFUSES` the tasks of these
that it does not serve, each with its reason; with `ROUNDS = True` it serves `fake_quantization`. One whose package has
to be imported before all others imports it in `first(facts)`, and its file loads nothing heavy by itself. One with
forms of its own for a frozen base names them in `forms(facts)`, the smallest first, and says by `frozen(run, weights,
experts)` how many bytes it takes; one with a precision of its own says it and why in `precision(facts)`; one that can
count what a micro-batch needs does so in `working(run, tokens)`, and says by `places(run)` what one row counts where
its words do not decide that (0 where they do).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.run import Run
from lorakit.tasks.batches import Batch

DECIDED = (
    "precision",
    "quantization",
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
)


def decided(run: Run) -> Run:
    """The same run. Raises `LorakitError` where what an engine needs to know before it loads is still open."""
    if missing := [name for name in DECIDED if getattr(run, name) == "auto"]:
        raise LorakitError(
            f"{missing[0]}='auto': an engine loads what is decided; name a value, or take what "
            "plan.resolve(run, machine.facts()) chooses for this machine"
        )
    return run


class Engine(Protocol):
    """The contract. Arrays are NumPy; no caller sees a device or a dtype."""

    packing: bool  # whether documents run end to end (True) or padded
    notes: dict[str, tuple[Any, str]]  # choices made while loading, with their reasons
    steps: list[str]  # what was done when memory ran out
    worked: int  # targets that this process has trained on
    processor: Any  # the model's, of pictures or sound; None where only words go in
    share: tuple[
        int, int
    ]  # which part of an evaluation this process does, of how many: (0, 1) is all of it

    def loss(self, batch: Batch) -> tuple[float, int]:
        """(summed loss in nats, targets), in evaluation mode, without gradients."""

    def backward(self, batch: Batch) -> tuple[float, int]:
        """The same in training mode; gradients of the sum are accumulated."""

    def reduce(self, total: float, count: int) -> tuple[float, int]:
        """Both summed over all processes, and the accumulated gradients with them."""

    def gather(self, value: Any) -> list[Any]:
        """What every process has to say, in their order."""

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        """One optimizer step on the accumulated gradients divided by `count` -> (norm before clipping, skipped)."""

    def blame(self, batches: list[Batch]) -> str:
        """Which layer's output is the first that is not finite, in words."""

    def predict(self, batch: Batch) -> np.ndarray:
        """(D, 3) float64 for D documents: summed loss in nats, targets, targets predicted right; of C classes
        (D, 3 + C), the probability of each."""

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]] = (),
    ) -> list[list[int]]:
        """Greedy continuations of token ids, without prompt and without the stop token; `media`: as in `Batch`."""

    def memory(self) -> int:
        """Peak bytes so far, answers left out."""

    def generation_memory(self) -> int:
        """Peak bytes while answers were generated."""

    def parameters(self) -> dict[str, tuple[int, bool]]:
        """name -> (number of values, trained?)."""

    def fingerprint(self) -> dict[str, int]:
        """name -> a checksum of every parameter and buffer: what changed and what did not."""

    def weights(self) -> dict[str, np.ndarray]:
        """The trained tensors by name."""

    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        """Puts trained tensors back. Raises `LorakitError` when names or shapes differ."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything that training needs to go on: trained tensors, optimizer, scaler."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""

    def save(self, path: Path) -> Any:
        """The adapter in PEFT's format (or the whole model after full fine-tuning) with the tokenizer."""

    def close(self) -> None:
        """Gives the memory back; the engine is of no use afterwards."""
