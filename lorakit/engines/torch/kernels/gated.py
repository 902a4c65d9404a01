"""act(e) · g, the middle of a gated MLP (arXiv 2002.05202), and its gradient without anything saved but e and g."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.functional import gelu, silu

from lorakit.engines.torch.kernels.fused import one_pass

ACTS = {"silu": silu, "gelu_tanh": lambda x: gelu(x, approximate="tanh")}


def name_of(act: Any) -> str | None:
    """Which of `ACTS` a module of transformers computes: tried out."""
    if not callable(act):
        return None
    x = torch.linspace(-4, 4, 33)
    return next(
        (name for name, known in ACTS.items() if torch.allclose(act(x), known(x), atol=1e-6)), None
    )


def is_gated(module: Any, act: str) -> bool:
    """Whether a module is down(act(gate(x)) · up(x)) and no more, as Gemma 3n's sparse ones are: its own forward pass,
    tried with small layers in place of its own."""
    ahead, up = (torch.linspace(-n, n, 128, device="cpu").sin().view(8, 16) for n in (9, 14))
    alone = copy.copy(module)
    alone._modules = {
        "gate_proj": lambda x: x @ ahead,
        "up_proj": lambda x: x @ up,
        "down_proj": lambda h: h @ up.t(),
        "act_fn": module.act_fn,
    }
    x = torch.linspace(-3, 4, 24, device="cpu").cos().view(3, 8)
    try:
        theirs = type(module).forward(alone, x)
    except Exception:  # it takes more than x, or calls what it has elsewhere
        return False
    mine = (ACTS[act](x @ ahead) * (x @ up)) @ up.t()
    return theirs.shape == mine.shape and torch.allclose(theirs, mine, atol=1e-5)


@one_pass
def forward(e: torch.Tensor, g: torch.Tensor, act: str) -> torch.Tensor:
    """(N, I), (N, I) -> (N, I)"""
    return ACTS[act](e).mul_(g)


@one_pass
def backward(
    dh: torch.Tensor, e: torch.Tensor, g: torch.Tensor, act: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> the product again, and the gradients of e and g. `dh` is used up."""
    a = ACTS[act](e)
    back = (
        torch.ops.aten.silu_backward(dh * g, e)
        if act == "silu"
        else torch.ops.aten.gelu_backward(dh * g, e, approximate="tanh")
    )
    return a * g, back, dh.mul_(a)
