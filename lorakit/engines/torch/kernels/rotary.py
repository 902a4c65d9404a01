"""Rotary positions (arXiv 2104.09864) in two passes each way, or one, and nothing saved but the angles.

The plain form is `apply_rotary_pos_emb` of the model's own file: x · cos + turn(x) · sin, where turn((a, b)) = (-b, a)
of the two halves of a head. It stays in use where it is called otherwise, and where nothing is trained.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from lorakit.engines.torch.kernels import fused

NAME = "apply_rotary_pos_emb"


@fused.one_pass
def turned(x: torch.Tensor, cos: torch.Tensor, signed: torch.Tensor) -> torch.Tensor:
    """(…, D), angles that broadcast to it, (…, D) -> x · cos + swapped(x) · signed"""
    return torch.addcmul(x * cos, swapped(x), signed)


def swapped(x: torch.Tensor) -> torch.Tensor:
    """The two halves of a head, the second first."""
    a, b = x.chunk(2, -1)
    return torch.cat((b, a), -1)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, signed):
        ctx.save_for_backward(cos, signed)
        return turned(x, cos, signed)

    @staticmethod
    def backward(ctx, dy):
        cos, signed = ctx.saved_tensors
        return turned(dy, cos, swapped(signed)), None, None


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, H, N, D), (B, H_kv, N, D), angles (B, N, D) -> both, turned."""
    a, b = sin.unsqueeze(1).chunk(2, -1)
    cos, signed = cos.unsqueeze(1), torch.cat((-a, b), -1)  # (B, 1, N, D): one for all heads
    return _Turned.apply(q, cos, signed), _Turned.apply(k, cos, signed)


def install(model: Any) -> Counter[str]:
    """Puts this in place of the files' own functions that compute the same, as tried out -> how many files."""
    found: Counter[str] = Counter()
    for file in {sys.modules[type(m).__module__] for m in model.modules()}:
        plain = getattr(file, NAME, None)
        if plain is not None and (hasattr(plain, "plain") or same(plain)):
            found["rotary"] += 1
            setattr(file, NAME, plain if hasattr(plain, "plain") else served(plain))
    return found


def same(plain: Callable) -> bool:
    x, cos, sin = torch.randn(3, 1, 2, 4, 16, generator=torch.Generator().manual_seed(0)).unbind()
    try:
        q, k = plain(x, x[:, :1], cos[:, 0], sin[:, 0])
    except Exception:  # another function of that name takes other things
        return False
    mine = rotate(x, x[:, :1], cos[:, 0], sin[:, 0])
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-6) for a, b in zip((q, k), mine))


def served(plain: Callable) -> Callable:
    def apply(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ):
        pays = fused.wanted() or (torch.is_grad_enabled() and q.requires_grad)
        if args or kwargs or not pays or cos.dtype != q.dtype or cos.shape[-1] != q.shape[-1]:
            return plain(q, k, cos, sin, *args, **kwargs)
        return rotate(q, k, cos, sin)

    vars(apply)["plain"] = plain
    return apply
