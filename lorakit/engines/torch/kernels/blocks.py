"""Frozen linear layers whose weights stay in ggml's blocks, as a GGUF file holds them.

A block is a run of weights of one row with scales of its own (https://github.com/ggml-org/ggml, `ggml-common.h`).
Each product restores the weights to its precision, in the forward and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from lorakit.engines.torch.kernels import adapted


def half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """(n, 1) fp32: the fp16 number that begins at this byte of each block."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def nibbles(stored: torch.Tensor) -> torch.Tensor:
    """(n, k) bytes -> (n, 2 k): the lower four bits of all, then the upper."""
    return torch.cat([stored & 15, stored >> 4], 1)


def fifth_bits(stored: torch.Tensor) -> torch.Tensor:
    """(n, 4) bytes -> (n, 32): bit i of 32 belongs to weight i, shifted to the fifth place."""
    places = torch.arange(8, device=stored.device, dtype=torch.uint8)
    return (((stored[:, :, None] >> places) & 1) << 4).flatten(1)


def q4_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * (nibbles(b[:, 2:]).to(torch.int8) - 8)


def q4_1(b: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(half(b, 2), half(b, 0), nibbles(b[:, 4:]).float())


def q5_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * ((nibbles(b[:, 6:]) | fifth_bits(b[:, 2:6])).to(torch.int8) - 16)


def q5_1(b: torch.Tensor) -> torch.Tensor:
    whole = nibbles(b[:, 8:]) | fifth_bits(b[:, 4:8])
    return torch.addcmul(half(b, 2), half(b, 0), whole.float())


def q8_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * b[:, 2:].view(torch.int8)


def six_bit_scales(stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 12) bytes -> scales and minima (n, 8) of the eight parts of a K-block."""
    low, middle, high = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    scales = torch.cat([low & 63, (high & 15) | ((low >> 6) << 4)], 1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 6) << 4)], 1)
    return scales.float(), minima.float()


def scaled_parts(b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """weights (n, 8, 32) -> (n, 256), each part with its scale and minimum."""
    scales, minima = six_bit_scales(b[:, 4:16])
    scales, minima = half(b, 0) * scales, half(b, 2) * minima
    return (weights.float() * scales[:, :, None]).sub_(minima[:, :, None]).flatten(1)


def q4_k(b: torch.Tensor) -> torch.Tensor:
    stored = b[:, 16:].view(-1, 4, 1, 32)
    return scaled_parts(b, torch.cat([stored & 15, stored >> 4], 2).view(-1, 8, 32))


def q5_k(b: torch.Tensor) -> torch.Tensor:
    stored = b[:, 48:].view(-1, 4, 1, 32)
    places = torch.arange(8, device=b.device, dtype=torch.uint8)[:, None]
    fifth = ((b[:, None, 16:48] >> places) & 1) << 4  # (n, 8, 32)
    return scaled_parts(b, torch.cat([stored & 15, stored >> 4], 2).view(-1, 8, 32) | fifth)


def q6_k(b: torch.Tensor) -> torch.Tensor:
    low, high = b[:, :128].view(-1, 2, 2, 32), b[:, 128:192].view(-1, 2, 1, 32)
    low = torch.cat([low & 15, low >> 4], 2)  # (n, 2, 4, 32)
    places = torch.tensor([0, 2, 4, 6], device=b.device, dtype=torch.uint8)[:, None]
    whole = (low | (((high >> places) & 3) << 4)).view(-1, 16, 16).to(torch.int8) - 32
    scales = half(b, 208) * b[:, 192:208].view(torch.int8)
    return (whole * scales[:, :, None]).flatten(1)


# kind -> (weights in a block, bytes of a block, what restores n blocks (n, bytes) to (n, weights) in fp32)
KINDS: dict[str, tuple[int, int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "q4_0": (32, 18, q4_0),
    "q4_1": (32, 20, q4_1),
    "q5_0": (32, 22, q5_0),
    "q5_1": (32, 24, q5_1),
    "q8_0": (32, 34, q8_0),
    "q4_k": (256, 144, q4_k),
    "q5_k": (256, 176, q5_k),
    "q6_k": (256, 210, q6_k),
}


def dequantized(stored: torch.Tensor, kind: str) -> torch.Tensor:
    """(out, bytes of a row) uint8 -> (out, in) fp32, bit for bit what llama.cpp's `dequantize_row` gives."""
    _, size, restore = KINDS[kind]
    return restore(stored.reshape(-1, size)).view(len(stored), -1)


class Linear(adapted.FrozenLinear):
    """Stands for a frozen layer of (out, in) whose weight is (out, bytes of a row) of a GGUF file."""

    def __init__(self, layer: torch.nn.Linear, stored: torch.Tensor, kind: str):
        super().__init__(layer)
        self.kind = kind
        self.weight = torch.nn.Parameter(stored, requires_grad=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """(out, in) in this precision; kept while one token follows another (`adapted.standing`)."""
        kept = adapted.kept_weights()
        if kept is None:
            return dequantized(self.weight, self.kind).to(dtype)
        if id(self) not in kept:
            kept[id(self)] = dequantized(self.weight, self.kind).to(dtype)
        return kept[id(self)]

    def read(self, x: torch.Tensor) -> None:
        """Nothing of x has to be prepared."""

    def product(self, x: torch.Tensor, read: None = None) -> torch.Tensor:
        """(N, in) -> (N, out)"""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.dense(x.dtype), bias)

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        """(N, out) -> dy W (N, in)"""
        return dy @ self.dense(dy.dtype)
