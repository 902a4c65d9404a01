"""What an export will round weights to, as plain numbers: a run that computes with them learns to live with the loss.

The plain form is the exporter's own: `dequantize(packed(weight))` of `export/gguf.py`, equal bit for bit. Gradients go
through as if nothing were rounded (straight-through, arXiv 1308.3432 §4, 2305.17888 §2.2).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

BLOCK = 32  # weights of a row that share a scale
# dL/dA and dL/dB of x (W + s B A) need no gradient of the sum: whether it is rounded changes dL/dx alone.


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """(…, 32): 16 steps of a sixteenth of twice the largest weight, whose sign decides which end has one more."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    steps = (blocks * inverse(scale)).add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    return steps.mul_(scale.half().float())


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """(…, 32): 127 steps on either side of zero; halves go away from it."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks * inverse(scale)
    size = steps.abs()
    whole = size.floor()
    whole += size.sub_(whole).mul_(2).floor_()
    return whole.copysign_(steps).mul_(scale.half().float())


def inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


FORMS = {"q4_0": q4_0, "q8_0": q8_0}


def rounded(weight: torch.Tensor, form: str) -> torch.Tensor:
    """(out, in) in fp32; rows that no block fills are stored in 16 bits."""
    weight = weight.detach().float()
    if weight.shape[-1] % BLOCK:
        return weight.half().float()
    return FORMS[form](weight.reshape(-1, BLOCK)).view(weight.shape)


@torch.no_grad()
def settle(model: Any, form: str) -> Counter:
    """Rounds in place what is frozen and has no adapter, as embeddings and the head: once, for it never changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    left = {p for adapter in adapters for p in adapter.parameters()}
    settled = {m.weight for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))} - left
    for weight in settled:
        weight.copy_(rounded(weight, form))
    return Counter({"rounded in place": len(settled)})
