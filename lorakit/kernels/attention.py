"""Exact attention over a pack: documents end to end in one sequence, none sees another, and no (N, N) mask is built.

A transformers model runs it through its `AttentionInterface` under the name `lorakit`. Called without
`document_lengths` (padded rows, generation) it is transformers' own SDPA attention, which is its plain form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "lorakit"
_packed: ContextVar[bool] = ContextVar("packed", default=False)


@contextlib.contextmanager
def packed() -> Iterator[None]:
    """Inside, models build no mask: `document_lengths` says all there is to say."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def packed_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, document_lengths=None,
                     sliding_window=None, **kwargs):
    """query (1, H, N, D), key and value (1, H_kv, N, D), `document_lengths` summing to N -> ((1, N, H, D), None).

    Raises `ValueError` for a model that computes a mask of its own.
    """
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
                                      sliding_window=sliding_window, **kwargs)
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} brings a mask of its own")
    kept = query.dtype
    if query.device.type == "cpu":  # its bf16 backward pass takes three times as long as the fp32 one
        query, key, value = query.float(), key.float(), value.float()
    out = []
    # split, not slices: its backward pass is one concatenation instead of a zero-filled (N, …) per document.
    for q, k, v in zip(*(x.split(list(document_lengths), dim=2) for x in (query, key, value)), strict=True):
        length, band = q.shape[2], None
        if sliding_window and length > sliding_window:
            place = torch.arange(length, device=q.device)
            back = place[:, None] - place[None, :]  # how far each key lies behind each query
            band = (back >= 0) & (back < sliding_window)
        with torch.autocast(q.device.type, enabled=False):
            out.append(scaled_dot_product_attention(q, k, v, attn_mask=band, is_causal=band is None,
                                                    dropout_p=dropout, scale=scaling,
                                                    enable_gqa=q.shape[1] != k.shape[1]))
    return torch.cat(out, dim=2).to(kept).transpose(1, 2).contiguous(), None


def _mask(*args, **kwargs):
    # `generate` drops a mask of ones, so that the absence of one says nothing about packs.
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
