"""Interfaces of engines: `EngineModule`, what a file of this folder offers, and `Engine`, what its `load` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorakit.common.errors import LorakitError, first_line

if TYPE_CHECKING:
    from lorakit.machine.hardware import Facts
    from lorakit.models.spec import Spec
    from lorakit.run import Run
    from lorakit.tasks.batches import Batch
    from lorakit.tasks.protocol import Objective

DECIDED = (
    "precision",
    "quantization",
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
)


def decided(run: Run) -> Run:
    """The same run. Raises `LorakitError` when a setting that an engine needs before it loads is still `auto`."""
    if missing := [name for name in DECIDED if getattr(run, name) == "auto"]:
        raise LorakitError(
            f"{missing[0]}='auto': an engine loads what is decided",
            setting=missing[0],
            value="auto",
            cure="name a value, or take what plan.resolve(run, machine.facts()) chooses for this machine",
        )
    return run


def _no_precision(facts: Facts) -> tuple[str, str] | None:
    return None


def _nothing(facts: Facts) -> None:
    return None


def _not_counted(run: Run, tokens: int, card: tuple[int, int] | None = None) -> float:
    raise NotImplementedError


def _tokens_alone(run: Run) -> int:
    return 0


class EngineModule(Protocol):
    """A file of `engines/`. Importing it imports no framework: that happens in `load` and in `import_first`."""

    # What it computes: (an objective's `NEEDS`, a task's `MEDIUM`).
    SERVES: Sequence[tuple[str, str]] = (("target_loss", ""),)
    # Tasks among these that it does not serve: name -> reason.
    REFUSES: Mapping[str, str] = {}
    FAKE_QUANTIZATION: bool = False  # whether it serves the setting of this name
    VARIANTS: Sequence[str] = ()  # settings of `run.VARIANTS` that it serves
    # Whether in fp16 it trains adapters of models that leave its range: products in fp16, all else in fp32.
    HALF_PRODUCTS: bool = False
    # Whether it computes in fp32 for such models and keeps their weights in 16 bits.
    HALF_WEIGHTS: bool = False

    def fits(self, facts: Facts, spec: Spec) -> str:
        """Why this engine cannot serve here; "" when it can."""

    def suits(self, facts: Facts) -> tuple[int, str]:
        """(how well it serves, the highest is chosen and 0 only when asked for; why)."""

    def quantizations(self, facts: Facts) -> tuple[str, ...]:
        """Formats of a frozen base that it serves here, the smallest first."""

    def load(
        self, run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()
    ) -> Engine:
        """The base with a new adapter to train, or with a saved one (`adapter`); of `classes` with a new head."""

    # (its own precision, why), where the run leaves it open; None: as any engine.
    precision: Callable[[Facts], tuple[str, str] | None] = _no_precision
    # Imports its package where that has to be imported before all others.
    import_first: Callable[[Facts], None] = _nothing
    # (run, weights, experts' weights among them) -> bytes of a frozen base; None: as `planning.memory` counts.
    base_bytes: Callable[[Run, int, int], float] | None = None
    # (run, tokens, compute capability of the card or None) -> bytes alive at the worst moment of a micro-batch beside
    # weights, gradients and optimizer. Raises `NotImplementedError` where it cannot be counted.
    working_bytes: Callable[[Run, int, tuple[int, int] | None], float] = _not_counted
    # Positions that one row counts where its tokens do not decide that, else 0.
    row_positions: Callable[[Run], int] = _tokens_alone


class Engine(Protocol):
    """A loaded model that computes, trains and saves. Arrays are NumPy; no caller sees a device or a dtype.

    Losses travel as (sum, count) over targets, or over rows, and are divided once.
    """

    model: Any  # the framework's own
    tokenizer: Any  # None where no words go in
    processor: Any  # the model's, of pictures or sound; None where only words go in
    packing: bool  # whether documents run end to end (True) or padded
    notes: dict[str, tuple[Any, str]]  # choices made while loading, with their reasons
    steps: list[str]  # what was done when memory ran out
    targets_trained: int  # by this process
    share: tuple[int, int]  # (rank, world size) of this process in an evaluation
    objective: Objective  # what it computes the loss of

    def loss(self, batch: Batch) -> tuple[float, int]:
        """(summed loss in nats, targets), in evaluation mode, without gradients."""

    def begin_with(self, batches: Sequence[Batch]) -> None:
        """Gives new adapters what `adapter_init: eva` takes from these rows; only engines that serve it are asked."""

    def backward(self, batch: Batch) -> tuple[float, int]:
        """The same in training mode; gradients of the sum are accumulated. The sum may still be on its way: it adds up
        like a number, and `reduce` waits for it."""

    def reduce(self, total: float, count: int) -> tuple[float, int]:
        """Both summed over all processes, and the accumulated gradients with them."""

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        """One optimizer step on the accumulated gradients divided by `count` -> (norm before clipping, skipped)."""

    def first_nonfinite_layer(self, batches: list[Batch]) -> str:
        """A sentence that names the first layer whose output or gradient is not finite."""

    def predict(self, batch: Batch) -> np.ndarray:
        """(R, 3) float64 for R rows: summed loss, what it counts, how much of that was predicted right; of C classes
        (R, 3 + C), the probability of each; of preferences (R, 7), see `Objective.statistics`."""

    def score_documents(self, batch: Batch) -> np.ndarray:
        """(D, 3) float64 for D documents, whatever is learnt: nats summed over the targets, targets, targets right."""

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]] = (),
        accepts: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[list[int]]:
        """Greedy continuations of token ids, without prompt and without the stop token; `media`: as in `Batch`.

        With `accepts` each token is the most probable one for which it says that the ids so far, a stop token
        included, may begin an answer. Raises `LorakitError` where the engine cannot do that.
        """

    def memory(self) -> int:
        """Peak bytes so far, answers left out."""

    def generation_memory(self) -> int:
        """Peak bytes while answers were generated."""

    def parameters(self) -> dict[str, tuple[int, bool]]:
        """name -> (number of values, trained?)."""

    def fingerprint(self) -> dict[str, int]:
        """name -> a checksum of every parameter and buffer."""

    def weights(self) -> dict[str, np.ndarray]:
        """The trained tensors by name."""

    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        """Puts trained tensors back. Raises `LorakitError` when names or shapes differ."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything that training needs to resume: trained tensors, optimizer, scaler."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""

    def save(self, path: Path) -> Path:
        """The adapter in PEFT's format (or the whole model after full fine-tuning) with the tokenizer."""

    def close(self) -> None:
        """Frees the memory; the engine is of no use afterwards."""


# What engines do alike.


def require_same_tensors(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises `LorakitError` when a checkpoint's names or shapes are not the model's; `expected`: name -> shape."""
    where = "the checkpoint does not belong to this model and method"
    if tensors.keys() != expected.keys():
        other = sorted(tensors.keys() ^ expected.keys())[0]
        raise LorakitError(f"{where}: '{other}' is in one only")
    for name, shape in expected.items():
        if tensors[name].shape != tuple(shape):
            raise LorakitError(
                f"{where}: '{name}' has the shape {tensors[name].shape}, expected {tuple(shape)}"
            )


def adapter_refused(adapter: str | Path, model: str, error: Exception) -> LorakitError:
    """Why a saved adapter could not be put onto a base."""
    return LorakitError(
        f"{adapter}: the adapter cannot be loaded onto {model}: {first_line(error)}. Was it made for "
        "another base? Else start the run again under another name"
    )


def tensors_in(state: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """The tensors of one part of a state, `weight`, `optimizer/<name>` or `scaler`, by their names in it."""
    prefix = f"{part}/"
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def new_tokens_that_fit(longest_prompt: int, max_new_tokens: int, positions: int | None) -> int:
    """Tokens to generate behind a prompt; the last one needs no position. Raises `LorakitError` when it is too long."""
    if not positions:
        return max_new_tokens
    if longest_prompt > positions:
        raise LorakitError(
            f"a prompt has {longest_prompt} tokens, and the model {positions} positions",
            setting="max_length",
            value=longest_prompt,
        )
    return min(max_new_tokens, positions - longest_prompt + 1)


def summed_loss(per_document: np.ndarray) -> tuple[float, int]:
    """(sum, count) of what `Engine.predict` returns."""
    return float(per_document[:, 0].sum()), int(per_document[:, 1].sum())


def per_document(batch: Batch, losses: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(D, 3) of `Engine.predict` from losses (K,) in nats and hits (K,) of a batch's K targets."""
    document = batch.documents[batch.targets]
    columns = (losses, np.ones_like(losses), right)
    sums = [np.bincount(document, w, minlength=len(batch.lengths)) for w in columns]
    return np.stack(sums, axis=1)


# What a packed form that was tried out showed.
CROSSES = (
    "padded: in this model a document in a pack would see the one before it (tried at loading)"
)
DIFFERS = "padded: this model's own attention differs from the one over packs (tried at loading)"
ISOLATED = "packed: exact attention per document (tested at loading: documents do not influence each other)"
