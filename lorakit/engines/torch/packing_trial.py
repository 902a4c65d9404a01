"""Whether a model keeps the documents of a pack apart: tried out at loading."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lorakit.engines import protocol
from lorakit.engines.torch.adapter import stacks
from lorakit.engines.torch.out_of_memory import out_of_memory
from lorakit.engines.torch.passes import Passes
from lorakit.tasks.batches import Batch

TRIAL = 24  # tokens of a document whose logits are compared


def isolates(passes: Passes, max_length: int) -> tuple[bool, str]:
    """Whether a document in a pack is what it is alone in the padded form: tried out, not believed."""
    config = passes.bare.config.get_text_config()
    window = max(
        getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")
    )
    length = min(
        max_length, TRIAL + (window if max_length > window else 0)
    )  # past the window, where rows get there
    vocabulary = passes.model.get_input_embeddings().weight.shape[0]
    low, high, second = np.random.default_rng(0).integers(0, vocabulary, (3, length))
    # How many tokens an expert gets decides how its product is rounded, and that may send a token elsewhere.
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
    apart = (packed - plain).abs().amax(1)
    exact = passes.autocast is None and passes.model.dtype == torch.float32
    noise = (1e-3 if exact else 0.1) * max(1.0, plain.abs().max().item())
    if (apart.median() if experts else apart.max()) > noise:
        return False, protocol.DIFFERS
    return True, protocol.ISOLATED


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
