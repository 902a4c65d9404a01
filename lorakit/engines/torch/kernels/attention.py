"""Exact attention over a pack: documents end to end in one sequence, none sees another, and no (N, N) mask is built.

A transformers model runs it through its `AttentionInterface` under the name `lorakit`. Called without
`documents` (padded rows, generation) it is transformers' own SDPA attention, which is its plain form, or the eager
attention in the model's own file where the model has sinks: scores that stand in every softmax and gather nothing
(arXiv 2309.17453; gpt-oss).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lorakit.engines.torch.kernels import attention_cpu, device
from lorakit.engines.torch.kernels.attention_cpu import ShortSequenceAttention
from lorakit.engines.torch.kernels.attention_cuda import efficient, flash
from lorakit.engines.torch.kernels.documents import Documents as Documents

NAME = "lorakit"
_packed: ContextVar[bool] = ContextVar("packed", default=False)


@contextlib.contextmanager
def packed() -> Iterator[None]:
    """Models build no mask within this block: `documents` says which token sees which."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """query (1, H, N, D), key and value (1, H_kv, N, D), `documents` of N tokens together -> ((1, N, H, D), None).

    Sinks (H,) come as `s_aux`. Raises `ValueError` for a model that computes a mask, or something else, of its own.
    """
    if documents is None:
        plain = eager_attention if "s_aux" in kwargs else sdpa_attention
        return plain(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **kwargs,
        )
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} brings a mask of its own")
    for name in ("position_bias", "softcap"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} brings a {name}")
    query, key, value = same_dtype(query, key, value)
    way = form(query, value, dropout) if documents.keys is None else by_document
    sinks = kwargs.get("s_aux")
    with torch.autocast(query.device.type, enabled=False):
        return way(query, key, value, documents, scaling, dropout, sliding_window, sinks), None


def same_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """As autocast casts the inputs of attention, else as the last: angles in fp32 widen queries and keys."""
    kind, dtype = tensors[0].device.type, tensors[-1].dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return [x.to(dtype) for x in tensors]


def sdpa_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' SDPA attention. Below compute capability 8.0 without grouped heads, which no fused kernel takes
    there: torch would build (H, N, N) scores."""
    if attention_mask is None and key.shape[1] != query.shape[1] and ungrouped(query.device):
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def ungrouped(where: torch.device) -> bool:
    """Whether this card's fused kernels take only as many key heads as query heads."""
    capability = device.capability(where)
    return capability is not None and capability < device.AMPERE


def eager_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The eager attention of the file that the module is from, which adds its mask to the scores."""
    if (
        attention_mask is None and query.shape[2] > 1
    ):  # where sdpa_mask leaves one out, it is causal
        attention_mask = torch.ones(
            query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
        ).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        hidden = query.new_full((), torch.finfo(query.dtype).min)
        attention_mask = torch.where(attention_mask, hidden.new_zeros(()), hidden)
    return sys.modules[type(module).__module__].eager_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )


def form(
    query: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
) -> Callable[..., torch.Tensor]:
    """The fastest exact one for this device, dtype and head size."""
    capability, width = device.capability(query.device), query.shape[-1]
    if capability is None or width % 8 or value.shape[-1] % 8:
        return by_document
    flash_dtype = query.dtype in (torch.float16, torch.bfloat16)
    # Its backward pass over wide heads is for A100 and H100 alone (flash_api.cpp: `mha_varlen_bwd`).
    trains = width <= 192 or capability in device.DATA_CENTRE or (width > 224 and not dropout)
    if flash_dtype and capability >= device.AMPERE and value.shape[-1] == width <= 256 and trains:
        return flash
    return efficient


def by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    dropout: float,
    window: int | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """torch's own attention, one document after the other; short ones in bf16 on a CPU by products alone."""
    scaling = scaling or query.shape[-1] ** -0.5
    # A CPU's fused backward pass in bf16 takes up to three times as long as that in fp32; its forward pass is fastest.
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    wide, short = documents.wide and trained, 0
    if wide and query.dtype == torch.bfloat16 and not dropout:
        short = min(attention_cpu.SHORT, window or attention_cpu.SHORT)
    if documents.keys is not None:
        key, value = (x.index_select(2, documents.keys) for x in (key, value))
    elif documents.longest <= short:
        return ShortSequenceAttention.apply(
            query, key, value, documents.lengths, documents.causal_mask, sinks, scaling
        )
    if ungrouped(query.device):
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    out: list[torch.Tensor] = []
    # split, not slices: its backward pass is one concatenation instead of a zero-filled (N, …) per document.
    for q, k, v in zip(
        query.split(documents.lengths, dim=2),
        *(x.split(documents.key_lengths, dim=2) for x in (key, value)),
        strict=True,
    ):
        length, whole = k.shape[2], k.shape[2] == q.shape[2]
        if whole and length <= short:
            few = ShortSequenceAttention.apply(
                q, k, v, [length], documents.causal_mask, sinks, scaling
            )
            out.append(few.transpose(1, 2))
            continue
        if wide:
            q, k, v = q.float(), k.float(), v.float()
        way: Callable[..., torch.Tensor] = sdpa
        if sinks is not None:
            fused = attention_cpu.serves_sinks(q, v, dropout)
            way = attention_cpu.fused_with_sinks if fused else with_sinks
        for rows, keys, band in bands(q.shape[2], length, window, q.device):
            block = way(q[:, :, rows], k[:, :, keys], v[:, :, keys], band, scaling, dropout, sinks)
            out.append(block.to(query.dtype))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    band: torch.Tensor | None,
    scale: float,
    dropout: float,
    sinks: None,
) -> torch.Tensor:
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=band,
        is_causal=band is None,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def with_sinks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    band: torch.Tensor | None,
    scale: float,
    dropout: float,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """Every score and the sink beside them: where no kernel returns the sum of its softmax."""
    shared, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    if band is None:
        band = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(2, 3)).float().mul(scale).masked_fill(~band, -torch.inf)
    column = sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
    p = torch.cat([scores, column], -1).softmax(-1)[..., :-1].to(v.dtype)
    return torch.dropout(p, dropout, dropout > 0) @ v


def bands(
    count: int, length: int, window: int | None, where: torch.device
) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
    """(queries, keys, mask) of the last `count` of a document's tokens in blocks of `window` queries.

    The mask of a block is (window, 2 · window) at most, None where it is causal.
    """
    before = length - count
    if not before and (not window or length <= window):
        yield slice(None), slice(None), None
        return
    window = window or length
    for first in range(before, length, window):
        start, last = max(0, first - window), min(first + window, length)
        queries, keys = (torch.arange(n, last, device=where) for n in (first, start))
        behind = queries[:, None] - keys
        seen = (behind >= 0) & (behind < window)
        yield slice(first - before, last - before), slice(start, last), seen


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    # `generate` drops a mask of ones, so that the absence of one says nothing about packs.
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionInterface.register("sdpa", sdpa_attention)  # of models that are never packed
AttentionMaskInterface.register(NAME, _mask)
