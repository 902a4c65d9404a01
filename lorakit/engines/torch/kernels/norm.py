"""RMSNorm (arXiv 1910.07467) that keeps its input and one number a row, not an fp32 copy of the input.

The plain form is the model's own module: x / sqrt(mean(x²) + ε) · (offset + weight), in fp32 inside.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from lorakit.engines.torch.kernels.fused import one_pass


@one_pass
def forward(
    x: torch.Tensor, scale: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(…, H) -> (…, H), and 1 / sqrt(mean(x²) + ε) in fp32, (…, 1)."""
    wide = x.float()
    inverse = (
        torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1] + epsilon
    ).rsqrt()
    return (wide * inverse).mul_(scale).to(x.dtype), inverse


@one_pass
def backward(
    dy: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """-> the gradient of x, rounded once."""
    unit, back = x.float() * inverse, dy.float() * scale
    along = torch.linalg.vecdot(unit, back).unsqueeze(-1) / x.shape[-1]
    return back.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, epsilon):
        y, inverse = forward(x, scale, epsilon)
        ctx.save_for_backward(x, inverse, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return backward(dy, *ctx.saved_tensors), None, None


def norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(…, H) -> (…, H), times `scale` (H,) in fp32; no gradient for `scale`."""
    return _Norm.apply(x, scale, epsilon)


def install(model: Any) -> Counter:
    """Gives every frozen RMSNorm of a model this forward pass, after trying out that it is the same -> how many."""
    found = Counter()
    for module in model.modules():
        if (scale := _scale(module)) is not None:
            found["RMSNorm"] += 1
            _serve(module, *scale)
    return found


def _serve(module: Any, offset: float, epsilon: float) -> None:
    module.forward = lambda x: norm(x, module.weight.float() + offset, epsilon)


def _scale(module: Any) -> tuple[float, float] | None:
    """(offset, epsilon) of a module that computes the formula above."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not type(module).__name__.endswith("RMSNorm")
        or not isinstance(weight, torch.nn.Parameter)
        or weight.ndim != 1
    ):
        return None
    if weight.requires_grad or epsilon is None:
        return None
    if weight.device.type == "meta":  # nothing can be tried out
        return 0.0, epsilon
    with torch.no_grad():
        x = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(
            weight.device
        )
        theirs = module(x).float()
        for offset in (0.0, 1.0):
            mine = norm(x, weight.float() + offset, epsilon)
            if torch.allclose(mine, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max())):
                return offset, epsilon
    return None
