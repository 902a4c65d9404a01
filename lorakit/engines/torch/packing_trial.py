"""Whether a model keeps the documents of a pack apart: tried out at loading."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lorakit.engines import protocol
from lorakit.engines.torch.adapter import stacks
from lorakit.engines.torch.kernels.device import is_cpu
from lorakit.engines.torch.out_of_memory import out_of_memory
from lorakit.engines.torch.passes import Passes
from lorakit.tasks.batches import Batch

TRIAL = 24  # tokens of a document whose logits are compared


def isolates(passes: Passes, max_length: int) -> tuple[bool, str]:
    """Whether a document in a pack is what it is alone in the padded form: tried out, not believed."""
    # past the window, where rows get there
    length = min(max_length, TRIAL + _window(passes, max_length))
    low, high, second = _drawn(passes, 3, length)
    experts = bool(stacks(passes.model))
    with passes.evaluating(), torch.no_grad():
        plain = last_logits(passes, second, packed=False)
        try:
            packed = last_logits(passes, low, second, packed=True)
            crosses = (
                _crosses(passes, low[:TRIAL], second[:TRIAL])
                if experts
                else not torch.equal(packed, last_logits(passes, high, second, packed=True))
            )
        except (TypeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):  # says nothing about the model
                raise
            return False, f"padded: this model does not run over packs ({error})"
    if crosses:
        return False, protocol.CROSSES
    return (True, protocol.ISOLATED) if _same(passes, packed, plain) else (False, protocol.DIFFERS)


def shares(passes: Passes, max_length: int) -> tuple[bool, str]:
    """Whether what two documents of a row begin with may be computed once: tried out on such a pair."""
    if not passes.packing or not is_cpu(passes.device):
        return (
            False,
            "both answers of a pair behind their own prompt: computed once in packs on a CPU",
        )
    length = min(max_length, 2 * TRIAL + _window(passes, max_length))
    first, second = _drawn(passes, 2, length)
    second[: -TRIAL // 2] = first[: -TRIAL // 2]
    targets = np.zeros(2 * length, dtype=bool)
    targets[length - TRIAL // 2 : length] = targets[-TRIAL // 2 :] = True
    batch = Batch(np.append(first, second), targets, np.full(2, length), np.zeros(2, np.int64))
    with passes.evaluating(), torch.no_grad():
        plain = passes.logits(batch).float()
        passes.shares = True
        once = passes.logits(batch).float()
        passes.shares = False
    if not _same(passes, once, plain):
        return (
            False,
            "both answers of a pair behind their own prompt: once it differs (tried at loading)",
        )
    return True, "a pair's prompt is computed once for both answers (tried at loading: as apart)"


def _same(passes: Passes, mine: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether two forms of a pass agree, up to rounding."""
    apart = (mine - plain).abs().amax(1)
    exact = passes.autocast is None and passes.model.dtype == torch.float32
    noise = (1e-3 if exact else 0.1) * max(1.0, plain.abs().max().item())
    # How many tokens an expert gets decides how its product is rounded, and that may send a token elsewhere.
    return bool((apart.median() if stacks(passes.model) else apart.max()) <= noise)


def _window(passes: Passes, max_length: int) -> int:
    """Tokens that a layer sees at most, where rows are longer, else 0."""
    config = passes.bare.config.get_text_config()
    window = max(
        getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")
    )
    return window if max_length > window else 0


def _drawn(passes: Passes, count: int, length: int) -> np.ndarray:
    vocabulary = passes.model.get_input_embeddings().weight.shape[0]
    return np.random.default_rng(0).integers(0, vocabulary, (count, length))


def last_logits(passes: Passes, *documents: np.ndarray, packed: bool) -> torch.Tensor:
    """(TRIAL, V) logits at the end of the last of documents of one length, less where they are shorter."""
    number, length, passes.packing = len(documents), len(documents[0]), packed
    targets = np.zeros(number * length, dtype=bool)
    targets[-min(TRIAL, length - 1) :] = True
    ids = np.concatenate(documents)
    return passes.logits(Batch(ids, targets, np.full(number, length), np.arange(number))).float()


def _crosses(passes: Passes, *documents: np.ndarray) -> bool:
    """Whether in a pack of two the second depends on the first: by its gradient, which rounding leaves zero."""
    seen: list[torch.Tensor] = []

    def leaf(module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    hook = passes.model.get_input_embeddings().register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            logits = last_logits(passes, *documents, packed=True)
            (gradient,) = torch.autograd.grad(logits.square().sum(), seen[0])
    finally:
        hook.remove()
    return bool(gradient[0, : len(documents[0])].any())
