"""What an export will round weights to, as plain numbers: a run that computes with them learns to live with the loss.

The plain form is the exporter's own, packed and read again, equal bit for bit. A gradient goes through as if nothing
were rounded (straight-through, arXiv 1308.3432 §4, 2305.17888 §2.2): those of A and B in x (W + s B A)ᵀ need no
gradient of the sum, so that rounding changes nothing but the gradient of x.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from lorakit.common.errors import LorakitError


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """GGUF's, (N, 32): steps of an eighth of the largest weight, which is the one at -8; 7 on the other side."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    steps = (blocks * inverse(scale)).add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    return steps.mul_(scale.half().float())


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """GGUF's, (N, 32): 127 steps on either side of zero; halves go away from it."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks * inverse(scale)
    size = steps.abs()
    whole = size.floor()
    whole += size.sub_(whole).mul_(2).floor_()
    return whole.copysign_(steps).mul_(scale.half().float())


def affine4(groups: torch.Tensor) -> torch.Tensor:
    """MLX's, (N, 64) or (N, 32), of 16-bit weights: 15 steps from the end farther from zero, which is exact, and zero
    one of them."""
    groups = groups.half().float()
    low, high = groups.aminmax(dim=-1, keepdim=True)
    below = low.abs() > high.abs()
    scale = ((high - low) / 15).clamp_(min=1e-7)
    scale, edge = torch.where(below, scale, -scale), torch.where(below, low, high)
    count = (edge / scale).round_()
    scale, offset = torch.where(count == 0, scale, edge / count), torch.where(count == 0, 0, edge)
    steps = ((groups - offset) / scale).round_().clamp_(0, 15)
    return steps.mul_(scale.half().float()).add_(offset.half().float())


def inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


# What a scale is shared by, the first that divides a row, and how it is rounded.
FORMS = {"q4_0": ((32,), q4_0), "q8_0": ((32,), q8_0), "affine4": ((64, 32), affine4)}


def rounded(weight: torch.Tensor, form: str) -> torch.Tensor:
    """(out, in) in fp32; rows that nothing divides are stored in 16 bits."""
    sizes, function = FORMS[form]
    weight = weight.detach().float()
    size = next((s for s in sizes if weight.shape[-1] % s == 0), None)
    return function(weight.reshape(-1, size)).view(weight.shape) if size else weight.half().float()


@torch.no_grad()
def settle(model: Any, form: str) -> Counter:
    """Rounds in place what is frozen and has no adapter, as embeddings and the head: once, for it never changes.

    Raises `LorakitError` where embeddings share their weights with an adapted head: no sum stands for both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    left = {p for m in model.modules() if isinstance(m, BaseTunerLayer) for p in m.parameters()}
    if any(m.weight in left for m in model.modules() if isinstance(m, torch.nn.Embedding)):
        raise LorakitError(
            f"fake_quantization={form!r}: the head's weights are the embeddings' as well, which its "
            "adapter does not change; leave the head out of target_modules"
        )
    settled = {
        m.weight for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))
    } - left
    for weight in settled:
        weight.copy_(rounded(weight, form))
    return Counter({"rounded in place": len(settled)})
