"""Products with frozen weights: dense or of four bits, in their own precision, whatever that of what is multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F

from lorakit.engines.torch.kernels import device

FEW = 64  # rows up to which four bits are multiplied as they are stored
_generating: ContextVar[bool] = ContextVar("generating", default=False)
_room: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


@contextmanager
def generating() -> Iterator[None]:
    """Multiplies few rows with four bits as they are stored within this block, without gradients."""
    token = _generating.set(True)
    try:
        yield
    finally:
        _generating.reset(token)


def quant_state(layer: Any) -> Any:
    """bitsandbytes' state of a weight in four bits, else None. A weight that FSDP has gathered does not carry it."""
    return getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)


def dense(layer: Any) -> torch.Tensor:
    """(out, in) in the precision that the layer computes in."""
    state = quant_state(layer)
    return layer.weight if state is None else dequantized(layer.weight.data.view(-1, 1), state)


def dequantized(weight: torch.Tensor, state: Any) -> torch.Tensor:
    """(out, in) of four bits a value; on a card in memory that the next call writes over."""
    from bitsandbytes.functional import dequantize_4bit

    if device.capability(weight.device) is None:  # only CUDA's writes into memory given to it
        return dequantize_4bit(weight, state)
    size, key = state.shape.numel(), (weight.device, state.dtype)
    if key not in _room or _room[key].numel() < size:
        _room[key] = torch.empty(size, dtype=state.dtype, device=weight.device)
    return dequantize_4bit(weight, state, out=_room[key][:size].view(state.shape))


def forget() -> None:
    """Gives that memory back."""
    _room.clear()


def is_half_of(weight: torch.dtype, x: torch.dtype) -> bool:
    """Whether a product of x in fp32 is computed in the weight's 16 bits."""
    return x == torch.float32 and weight in (torch.float16, torch.bfloat16)


def normalized(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) fp32 -> its rows over a power of two, at most 1, in 16 bits; and those powers (N, 1).

    Neither a row nor its products overflow fp16, and no bit is lost by the scale. Infinite rows stay infinite.
    """
    _, exponent = torch.frexp(x.abs().amax(1, keepdim=True))
    scale = torch.ldexp(torch.ones_like(exponent, dtype=x.dtype), exponent)
    return (x / scale).to(dtype), scale


def linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """x (N, in) -> x Wᵀ + bias (N, out), of x's dtype."""
    bias, state = layer.bias, quant_state(layer)
    few = state is not None and _generating.get() and len(x) <= FEW
    weight_dtype = layer.weight.dtype if state is None else state.dtype
    if is_half_of(weight_dtype, x.dtype):
        half, scale = normalized(x, weight_dtype)
        y = four_bit(half, layer, None) if few else half @ dense(layer).t()
        out = y.to(x.dtype).mul_(scale)
        return out if bias is None else out.add_(bias.to(x.dtype))
    bias = None if bias is None else bias.to(x.dtype)
    return four_bit(x, layer, bias) if few else F.linear(x, dense(layer).to(x.dtype), bias)


def four_bit(x: torch.Tensor, layer: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """bitsandbytes' own product: on a card a kernel that reads four bits a weight and dequantizes none to memory."""
    from bitsandbytes import matmul_4bit

    with torch.no_grad():
        return matmul_4bit(x, layer.weight.data.view(1, -1), quant_state(layer), bias=bias)


def back(dy: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """dy (N, out) times W (out, in), added to `into` in place, of dy's dtype."""
    if is_half_of(weight.dtype, dy.dtype):
        half, scale = normalized(dy, weight.dtype)
        dx = (half @ weight).to(dy.dtype).mul_(scale)
        return dx if into is None else into.add_(dx)
    weight = weight.to(dy.dtype)
    return dy @ weight if into is None else into.addmm_(dy, weight)
