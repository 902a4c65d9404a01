"""Products in fp16 and everything else in fp32: for models that overflow in fp16, on cards without bf16 hardware.

The residual stream of Gemma 3 and gpt-oss grows beyond 65,504, fp16's largest number, while what a layer multiplies is
a row that can be scaled (`products.normalized`). So frozen matrices and embeddings are kept in fp16, which tensor cores
multiply, and activations, norms and all other parameters in fp32: nothing that a row holds can overflow, and no loss
has to be scaled. The plain form is the same model in fp32.
"""

from __future__ import annotations

import copy
from collections import Counter
from types import MethodType
from typing import Any

import torch

from lorakit.engines.torch.kernels import products

SMALLEST = 64  # inputs or outputs; routers and the like stay in fp32


def asked_for(precision: str, method: str, fp16: bool) -> bool:
    """Whether a run in `precision` computes so; `fp16`: whether its model stays in fp16's range."""
    return precision == "fp16" and method == "lora" and not fp16


class HalfLinear(torch.autograd.Function):
    """A frozen layer: (N, in) fp32 -> (N, out) fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return products.linear(x, layer)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return products.back(upstream[0].contiguous(), products.dense(ctx.layer)), None


def install(model: torch.nn.Module) -> str:
    """Prepares a model loaded in fp16, before it gets an adapter -> what was done, in words."""
    found: Counter[str] = Counter()
    kept: set[int] = set()
    for module in model.modules():
        if is_linear(module):
            module.forward = MethodType(_linear, module)  # of its copies too, which PEFT trains
            found["linear layers"] += 1
            kept.add(id(module.weight))
        elif isinstance(module, torch.nn.Embedding):
            module.forward = MethodType(_embedding, module)
            found["embeddings"] += 1
            kept.add(id(module.weight))
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point() and id(tensor) not in kept:
                tensor.data = tensor.data.float()
    return ", ".join(f"{n} {what}" for what, n in found.items())


def described(model: torch.nn.Module) -> tuple[str, str]:
    """Installs it -> what is computed so, and why."""
    return (
        f"{install(model)} in fp16, all else in fp32",
        "plain fp16 overflows in this model, and its products cannot: each row is scaled",
    )


def is_linear(module: torch.nn.Module) -> bool:
    """A layer of four bits, or a dense one that tensor cores pay for."""
    if type(module) is torch.nn.Linear:
        return min(module.in_features, module.out_features) >= SMALLEST
    return isinstance(module, torch.nn.Linear) and type(module).__name__ == "Linear4bit"


def _linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.weight.requires_grad:  # a trained head is in fp32
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    rows = x.float().reshape(-1, x.shape[-1])
    return HalfLinear.apply(rows, layer).view(*x.shape[:-1], -1)


def _embedding(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """Looks up in 16 bits and computes what else the module does, as Gemma's scaling, in fp32."""
    if module.weight.requires_grad:  # trained ones are in fp32
        return type(module).forward(module, ids)
    rows = torch.nn.functional.embedding(ids.reshape(-1), module.weight).float()
    alone = copy.copy(module)  # with the rows of these tokens for a table
    alone._parameters = {"weight": torch.nn.Parameter(rows, requires_grad=False)}
    alone.num_embeddings, alone.padding_idx = len(rows), None
    places = torch.arange(len(rows), device=ids.device).view(ids.shape)
    return type(module).forward(alone, places)
