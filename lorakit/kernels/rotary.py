"""Rotary positions (arXiv 2104.09864) in one pass each way, and nothing saved but the angles.

The plain form is `apply_rotary_pos_emb` of the model's own file: x · cos + turn(x) · sin, where turn((a, b)) = (-b, a)
of the two halves of a head. It stays in use where it is called otherwise, and while nothing is fused.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from lorakit.kernels import fused

NAME = "apply_rotary_pos_emb"


@fused.one_pass
def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(…, D), angles that broadcast to it -> (…, D)"""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


@fused.one_pass
def turned_back(dy: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """-> the gradient of x."""
    a, b = (dy * sin).chunk(2, -1)
    return dy * cos + torch.cat((b, -a), -1)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        return turned_back(dy, *ctx.saved_tensors), None, None


def install(model: Any) -> Counter:
    """Puts this in place of the files' own functions that compute the same, as tried out -> how many files."""
    found = Counter()
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
    mine = turned(x, cos[:, :1], sin[:, :1])
    return q.shape == mine.shape and torch.allclose(q, mine) and torch.allclose(k, mine[:, :1])


def served(plain: Callable) -> Callable:
    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any):
        if args or kwargs or not fused.wanted() or cos.dtype != q.dtype or cos.shape[-1] != q.shape[-1]:
            return plain(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (1, 1, N, D): one for all heads
        return _Turned.apply(q, cos, sin), _Turned.apply(k, cos, sin)

    apply.plain = plain
    return apply
