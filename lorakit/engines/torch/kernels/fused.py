"""Passes over activations between the products: each written once in plain torch, and on demand one loop of each.

The plain form is the function itself. `torch.compile` makes of it a kernel for any number of rows, which takes a C++
compiler on a CPU and Triton on a card; it rounds once where the plain form rounds after every step.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from lorakit.common.errors import first_line

MANY = 2**15  # values of the first argument from which a kernel's call pays
_wanted = False


def one_pass(plain: Callable) -> Callable:
    """Decorates a function of tensors; the first one's size decides whether a kernel pays."""
    made: list[Callable] = []

    @functools.wraps(plain)
    def call(first: torch.Tensor, *others: Any) -> Any:
        if not _wanted or first.device.type == "meta" or first.numel() < MANY:
            return plain(first, *others)
        if not made:
            made.append(torch.compile(plain, dynamic=True))
        try:
            return made[0](first, *others)
        except (
            torch._dynamo.exc.TorchDynamoException
        ) as error:  # nothing has run: kernels are made before any call
            made[:] = [plain]
            warnings.warn(
                f"{plain.__module__}.{plain.__name__} goes on uncompiled: {first_line(error)}",
                stacklevel=2,
            )
            return plain(first, *others)

    return call


def wanted() -> bool:
    return _wanted


def switch(wanted: bool, device: torch.device) -> tuple[bool, str]:
    """For all of this process -> (whether kernels are made, why). One is made and tried before that is promised."""
    global _wanted
    _wanted = False
    if not wanted:
        return False, "not asked for"
    if device.type not in ("cpu", "cuda"):
        return False, f"torch.compile is not used on {device.type}"
    try:
        x = torch.linspace(-4, 4, 2**10, device=device).view(-1, 64)
        if not torch.allclose(
            torch.compile(_trial, dynamic=True)(x), _trial(x), rtol=1e-5, atol=1e-6
        ):
            return False, "torch.compile computes something else here"
    except Exception as error:  # no compiler, no Triton, or one that does not fit this torch: each in words of its own
        return False, f"torch.compile fails here: {first_line(error)}"
    _wanted = True
    return (
        True,
        "norms, gates and rotary positions run as one loop each; the first updates wait for a compiler",
    )


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x * x.square().mean(-1, keepdim=True).rsqrt()
