"""Attention by a pair of kernels, forward and backward, with or without sinks, as one node of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]
Forward = Callable[..., Tensors]  # (q, k, v) -> out, logsumexp, random state …
Backward = Callable[..., Tensors]  # (dout, q, k, v, out, logsumexp, random state …) -> dq, dk, dv


class KernelAttention(torch.autograd.Function):
    """Calls `forward` and `backward` with equal options, which torch's own derivative formulas do not.

    (torch 2.13 derives `_efficient_attention_forward` without its `window_size`: derivatives.yaml.)

    Sinks (H,), one more score in a head's softmax, gathering nothing: a kernel knows nothing of them, and is corrected.
    Its backward pass finds the probabilities and the mean of their gradients from its output and the logarithm of the
    softmax's sum; given both with the sink in them it is exact. That sum is (…, H, T), the output (…, T, H, D);
    `by_token` brings the one into the other's order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        forward: Forward,
        backward: Backward,
        by_token: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        out, total, *random_state = forward(q, k, v)
        if sinks is not None:
            kernel_total = total
            total = torch.logaddexp(total, sinks.to(total.dtype)[:, None])
            out = out * by_token(torch.exp(kernel_total - total))[..., None].to(out.dtype)
        ctx.save_for_backward(q, k, v, out, total, sinks, *random_state)
        ctx.kernel, ctx.by_token = backward, by_token
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, total, sinks, *random_state = ctx.saved_tensors
        dout, dsinks = upstream[0].contiguous(), None
        if ctx.needs_input_grad[3]:
            sink_probability = ctx.by_token(torch.exp(sinks.to(total.dtype)[:, None] - total))
            per_token = sink_probability * (dout.float() * out.float()).sum(-1)
            dsinks = -per_token.flatten(0, -2).sum(0).to(sinks.dtype)
        gradients = ctx.kernel(dout, q, k, v, out, total, *random_state)
        return *gradients, dsinks, None, None, None
