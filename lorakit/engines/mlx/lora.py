"""A linear layer with PEFT's adapter beside it, in MLX: y = W x + s B A dropout(x), A (r, in), B (out, r)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np


class Lora(nn.Module):
    """Tensors are named and shaped as PEFT's are. They stay fp32 and compute in the input's precision."""

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        scale: float,
        dropout: float,
        rng: np.random.Generator,
    ):
        super().__init__()
        self.base_layer, self.scale, self.rate = base_layer, scale, dropout
        self._key: mx.array | None = None  # of the dropout; None: none, as in evaluation
        out, width = size(base_layer)
        bound = 1 / math.sqrt(width)  # Kaiming uniform with a = sqrt(5), as PEFT begins
        self.lora_A = mx.array(rng.uniform(-bound, bound, (rank, width)).astype(np.float32))
        self.lora_B = mx.zeros((out, rank))

    def __call__(self, x: mx.array) -> mx.array:
        y, z = self.base_layer(x), x
        if self._key is not None and self.rate:
            kept = mx.random.bernoulli(1 - self.rate, x.shape, key=self._key)
            z = mx.where(kept, x / (1 - self.rate), 0.0).astype(x.dtype)
        return mx.addmm(
            y, z @ self.lora_A.T.astype(x.dtype), (self.scale * self.lora_B.T).astype(x.dtype)
        )


def size(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, quantized or not."""
    out, width = layer.weight.shape
    return out, width * 32 // layer.bits if hasattr(layer, "bits") else width


def recomputed(layer: nn.Module) -> None:
    """Makes one layer of a model keep its input alone and compute the rest again on the way back (arXiv 1604.06174)."""
    kind = type(layer)

    def again(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        def inner(trained: dict, x: mx.array) -> Any:
            self.update(trained)
            return kind.__call__(self, x, *args, **kwargs)

        return mx.checkpoint(inner)(self.trainable_parameters(), x)

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": again})


def watched(layer: nn.Module, see: Callable[[Any], None]) -> Callable[[], None]:
    """Shows every output of a layer to `see`, until what is returned here is called."""
    kind = type(layer)

    def shown(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = kind.__call__(self, *args, **kwargs)
        see(out)
        return out

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": shown})

    def restore() -> None:
        layer.__class__ = kind

    return restore
