"""A frozen linear layer in FP8 (e4m3: 3 bits of mantissa, 448 at most; arXiv 2209.05433), lossy and fast on cards with
FP8 units.

A weight is quantized twice, once for each product that it takes part in: with a scale per output channel for x Wᵀ, with
one per input channel for the input's gradient dy W. What is multiplied with it gets a scale per token as it comes, so
that a row is quantized alike in whatever company it is. The plain form multiplies the same values in high precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from lorakit.engines.torch.kernels import device
from lorakit.engines.torch.kernels.adapted import FrozenLinear

E4M3, MOST = torch.float8_e4m3fn, 448.0


@dataclass(frozen=True)
class Scaled:
    """A matrix (N, K) of e4m3, one scale (N, 1) a row."""

    values: torch.Tensor
    scale: torch.Tensor

    def whole(self) -> torch.Tensor:
        """(N, K) in fp32"""
        return self.values.float() * self.scale


def quantized(x: torch.Tensor) -> Scaled:
    """(N, K) -> its largest value in each row becomes 448. fp16 would overflow on the way.

    Row after row in memory, whatever the order of x: cuBLAS takes no other.
    """
    x = x if x.dtype == torch.bfloat16 else x.float()
    most = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True).clamp_min(1e-12)
    up = (
        MOST / most
    )  # rounded to x's precision, and the scale is its inverse to the last bit of fp32
    return Scaled((x * up).to(E4M3).contiguous(), up.float().reciprocal())


def product(x: Scaled, w: Scaled, dtype: torch.dtype) -> torch.Tensor:
    """x (N, K), w (M, K) -> x wᵀ (N, M)"""
    return (fast if tried(x.values.device) == "" else plain)(x, w, dtype)


def fast(x: Scaled, w: Scaled, dtype: torch.dtype) -> torch.Tensor:
    """On a card of any torch the sum leaves in bf16 alone."""
    leaves = dtype if device.is_cpu(x.values.device) else torch.bfloat16
    return torch._scaled_mm(x.values, w.values.t(), x.scale, w.scale.t(), out_dtype=leaves).to(
        dtype
    )


def plain(x: Scaled, w: Scaled, dtype: torch.dtype) -> torch.Tensor:
    return (x.whole() @ w.whole().t()).to(dtype)


@cache
def tried(where: torch.device) -> str:
    """Why `fast` does not compute here; "" where it does: tried out."""
    x, w = (
        quantized(torch.linspace(-3, 5, 32 * n, device=where).view(n, 32).cos()) for n in (48, 16)
    )
    try:
        mine, known = fast(x, w, torch.bfloat16).float(), plain(x, w, torch.float32)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        return str(error).splitlines()[0]
    return (
        ""
        if torch.allclose(mine, known, rtol=0.02, atol=0.02)
        else "its products of rows with scales are wrong"
    )


class Linear(FrozenLinear):
    """Stands for a frozen layer of (out, in). Its bytes are stored as such: adapters take the type of their base."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__(layer)
        there, back = (quantized(w.detach().float()) for w in (layer.weight, layer.weight.t()))
        self.weight = torch.nn.Parameter(
            there.values.view(torch.uint8), requires_grad=False
        )  # (out, in)
        self.register_buffer("scale", there.scale)  # (out, 1)
        self.register_buffer("back", back.values.view(torch.uint8))  # (in, out)
        self.register_buffer("back_scale", back.scale)  # (in, 1)

    def read(self, x: torch.Tensor) -> Scaled:
        """What `product` needs of x (N, in): the same for all layers that read it."""
        return quantized(x)

    def product(self, x: torch.Tensor, read: Scaled | None = None) -> torch.Tensor:
        """(N, in) -> (N, out)"""
        y = product(read or self.read(x), Scaled(self.weight.view(E4M3), self.scale), x.dtype)
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        """(N, out) -> dy W (N, in)"""
        return product(quantized(dy), Scaled(self.back.view(E4M3), self.back_scale), dy.dtype)


def install(model: Any, first: Any, skipped: Sequence[str] = ()) -> str:
    """Gives a model's linear layers FP8 weights -> how many, in words.

    Whole stay the head, what `skipped` (transformers' patterns) names, and the `first` block, whose error would go
    through all others: the lowest cosine of an adapter's gradient rises from 0.955 to 0.979 on the embedded model.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    found: Counter[bool] = Counter()
    left = {id(model.get_output_embeddings()), *map(id, first.modules())}
    for name in [name for name, _ in model.named_modules()]:  # holds no layer that was replaced
        layer = model.get_submodule(name)
        if (
            type(layer) is torch.nn.Linear
            and id(layer) not in left
            and should_convert_module(name, [*skipped] or None)
        ):
            fits = (
                layer.in_features % 16 == layer.out_features % 16 == 0
            )  # what the units multiply at a time
            found[fits] += 1
            if fits:
                model.set_submodule(name, Linear(layer))
    return f"{found[True]} linear layers" + (
        f", {found[False]} of other sizes left whole" if found[False] else ""
    )
