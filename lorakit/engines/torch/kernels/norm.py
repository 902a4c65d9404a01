"""RMSNorm (arXiv 1910.07467) that keeps its input and one number a row, not an fp32 copy of the input.

The plain form is the model's own module: x / sqrt(mean(x²) + ε) · (offset + weight), in fp32 inside.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch

from lorakit.engines.torch.kernels import device
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


class FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        y, inverse = forward(x, scale, epsilon)
        ctx.save_for_backward(x, inverse, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, scale = ctx.saved_tensors
        return backward(upstream[0], x, inverse, scale), None, None


class FusedNorm(torch.autograd.Function):
    """The same by torch's own kernels for CUDA, one each way; `scale` in the precision of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        y, inverse = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], scale, epsilon)
        ctx.save_for_backward(x, inverse, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, scale = ctx.saved_tensors
        dx, _ = torch.ops.aten._fused_rms_norm_backward(
            upstream[0].contiguous(), x, [x.shape[-1]], inverse, scale, [True, False]
        )
        return dx, None, None


def norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(…, H) -> (…, H), times `scale` (H,) in fp32; no gradient for `scale`."""
    return FrozenNorm.apply(x, scale, epsilon)


@cache
def fused_serves(where: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has these kernels for this device, and they compute the formula in both directions: tried out."""
    if device.capability(where) is None or not hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        return False
    x = torch.linspace(-3, 5, 192, device=where).view(3, 64).cos().to(dtype).requires_grad_()
    scale = torch.linspace(0.5, 2, 64, device=where).to(dtype)
    try:
        with torch.enable_grad(), torch.autocast(where.type, enabled=False):
            mine = FusedNorm.apply(x, scale, 1e-5)
            (gradient,) = torch.autograd.grad(mine.float().square().sum(), x)
            plain = norm(x, scale.float(), 1e-5)
            (expected,) = torch.autograd.grad(plain.float().square().sum(), x)
    except (RuntimeError, NotImplementedError):
        return False
    return torch.allclose(mine, plain, rtol=0.02, atol=0.02) and torch.allclose(
        gradient, expected, rtol=0.02, atol=0.05
    )


def install(model: Any) -> Counter[str]:
    """Gives every frozen RMSNorm of a model this forward pass, after trying out that it is the same -> how many."""
    found: Counter[str] = Counter()
    for module in model.modules():
        if (scale := _scale(module)) is not None:
            found["RMSNorm"] += 1
            _serve(module, *scale)
    return found


def _serve(module: Any, offset: float, epsilon: float) -> None:
    """A frozen scale is made once; anew where the weight is another, as after a move to a device."""
    made: list[tuple[torch.Tensor, torch.Tensor]] = []
    fusible = offset == 0 and module.weight.device.type != "meta"  # where kernels can be tried out

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = module.weight
        if fusible and weight.dtype == x.dtype and fused_serves(x.device, x.dtype):
            return FusedNorm.apply(x, weight.detach(), epsilon)
        if not made or made[0][0] is not weight or made[0][1].device != weight.device:
            made[:] = [(weight, weight.detach().float() + offset)]
        return norm(x, made[0][1], epsilon)

    module.forward = forward


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
