"""What kernels need to know of the device that they run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache

import torch

PAD_MULTIPLE = 32  # tokens
AMPERE, ADA = (8, 0), (8, 9)  # compute capabilities: FlashAttention and bf16; FP8
DATA_CENTRE = ((8, 0), (9, 0))  # A100, H100 and H200: more shared memory
Capability = tuple[int, int]
_planned: ContextVar[Capability | None] = ContextVar("planned", default=None)


@contextlib.contextmanager
def planned_for(card: Capability | None) -> Iterator[None]:
    """Kernels are chosen as on a card of this compute capability within this block, for tensors without content."""
    token = _planned.set(card)
    try:
        yield
    finally:
        _planned.reset(token)


def capability(device: torch.device) -> Capability | None:
    """The compute capability of a CUDA card, None of every other device."""
    return _planned.get() or _capability(device)


@cache
def _capability(device: torch.device) -> Capability | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def is_cpu(device: torch.device) -> bool:
    return device.type == "cpu" and capability(device) is None


def pad_multiple(device: torch.device, dtype: torch.dtype | None) -> int:
    """Pads matmul inputs to a multiple of this many tokens.

    oneDNN makes a kernel for every new shape of a product in bf16, which takes longer than the product itself, and
    keeps 1,024 of them.
    """
    return PAD_MULTIPLE if is_cpu(device) and dtype == torch.bfloat16 else 1


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Flushes denormals to zero on a CPU within this block: softmax with a peak is full of them, and each is slow."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
