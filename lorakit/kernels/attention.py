"""Exact attention over a pack: documents end to end in one sequence, none sees another, and no (N, N) mask is built.

A transformers model runs it through its `AttentionInterface` under the name `lorakit`. Called without
`document_lengths` (padded rows, generation) it is transformers' own SDPA attention, which is its plain form.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "lorakit"


def packed_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, document_lengths=None,
                     sliding_window=None, **kwargs):
    """query (1, H, N, D), key and value (1, H_kv, N, D), `document_lengths` summing to N -> ((1, N, H, D), None)."""
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
                                      sliding_window=sliding_window, **kwargs)
    out, start = [], 0
    for length in document_lengths:
        part = slice(start, start := start + length)
        band = None
        if sliding_window and length > sliding_window:
            place = torch.arange(length, device=query.device)
            back = place[:, None] - place[None, :]  # how far each key lies behind each query
            band = (back >= 0) & (back < sliding_window)
        out.append(scaled_dot_product_attention(
            query[:, :, part], key[:, :, part], value[:, :, part], attn_mask=band, is_causal=band is None,
            dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _mask(*args, attention_mask=None, **kwargs):
    # Packed rows come without a mask; padded rows and cached generation always with one.
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
