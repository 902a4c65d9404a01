"""Attention over documents of any length by the kernels that torch has for CUDA cards."""

from __future__ import annotations

import torch

from lorakit.engines.torch.kernels.attention_function import KernelAttention, Tensors
from lorakit.engines.torch.kernels.documents import Documents

aten = torch.ops.aten


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    dropout: float,
    window: int | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """FlashAttention (arXiv 2307.08691) in 16 bits, compute capability 8.0 and later, heads of up to 256."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
    ends, longest = documents.ends, documents.longest
    given = (ends, ends, longest, longest, dropout, True)
    left, right = (window - 1, 0) if window else (None, None)
    options = {"scale": scaling, "window_size_left": left, "window_size_right": right}

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        return aten._flash_attention_forward(q, k, v, *given, False, **options)[:-1]

    def backward(dout: torch.Tensor, *saved: torch.Tensor) -> Tensors:
        return aten._flash_attention_backward(dout, *saved[:5], *given, *saved[5:], **options)

    by_token = torch.Tensor.t
    return KernelAttention.apply(query, key, value, sinks, forward, backward, by_token)[None]


def efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    dropout: float,
    window: int | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Memory-efficient attention (arXiv 2112.05682), on any card and in fp32 too."""
    shared = query.shape[1] // key.shape[1]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (1, N, H, D)
    if shared > 1:
        key, value = key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2)
    ends, longest = documents.ends, documents.longest
    given, options = (ends, ends, longest, longest), {"scale": scaling, "window_size": window}

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        made = aten._efficient_attention_forward(q, k, v, None, *given, dropout, 1, True, **options)
        return made[:-2]

    def backward(
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        *random_state: torch.Tensor,
    ) -> Tensors:
        return aten._efficient_attention_backward(
            dout, q, k, v, None, out, *given, lse, dropout, *random_state, 1, False, **options
        )[:3]

    def by_token(total: torch.Tensor) -> torch.Tensor:
        """(D, H, longest) -> (1, N, H)"""
        document, position = documents.places()
        return total[document, :, position][None]

    return KernelAttention.apply(query, key, value, sinks, forward, backward, by_token)
