"""Exact attention over a pack: documents end to end in one sequence, none sees another, and no (N, N) mask is built.

A transformers model runs it through its `AttentionInterface` under the name `lorakit`. Called without
`documents` (padded rows, generation) it is transformers' own SDPA attention, which is its plain form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
    """Inside, models build no mask: `documents` says all there is to say."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


class Documents:
    """Where the documents of a pack end."""

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.lengths, self.longest = [int(n) for n in lengths], int(max(lengths))
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        self.ends = ends.to(device, non_blocking=True)  # (D + 1,)


def packed_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, documents=None,
                     sliding_window=None, **kwargs):
    """query (1, H, N, D), key and value (1, H_kv, N, D), `documents` of N tokens together -> ((1, N, H, D), None).

    Raises `ValueError` for a model that computes a mask of its own.
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
                                      sliding_window=sliding_window, **kwargs)
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} brings a mask of its own")
    with torch.autocast(query.device.type, enabled=False):
        out = form(query)(query, key, value, documents, scaling, dropout, sliding_window)
    return out, None


def form(query: torch.Tensor) -> Callable:
    """The fastest exact one for this device and precision."""
    if query.device.type != "cuda" or query.shape[-1] % 8:
        return by_document
    half, capability = query.dtype != torch.float32, torch.cuda.get_device_capability(query.device)
    return flash if half and capability >= (8, 0) and query.shape[-1] <= 256 else efficient


def flash(query, key, value, documents, scaling, dropout, window):
    """FlashAttention over documents of any length (arXiv 2307.08691), compute capability 8.0 and later."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
    ends, longest = documents.ends, documents.longest
    left, right = (window - 1, 0) if window else (None, None)
    return torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, longest, longest, dropout, True, False, scale=scaling, window_size_left=left,
        window_size_right=right)[0][None]


def efficient(query, key, value, documents, scaling, dropout, window):
    """Memory-efficient attention over documents of any length (arXiv 2112.05682), on any card, in fp32 too."""
    shared = query.shape[1] // key.shape[1]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (1, N, H, D)
    if shared > 1:
        key, value = key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2)
    return torch.ops.aten._efficient_attention_forward(
        query, key, value, None, documents.ends, documents.ends, documents.longest, documents.longest, dropout, 1,
        True, scale=scaling, window_size=window)[0]


def by_document(query, key, value, documents, scaling, dropout, window):
    """torch's own attention, one document after the other."""
    kept, out = query.dtype, []
    if query.device.type == "cpu":  # its bf16 backward pass takes three times as long as the fp32 one
        query, key, value = query.float(), key.float(), value.float()
    # split, not slices: its backward pass is one concatenation instead of a zero-filled (N, …) per document.
    for q, k, v in zip(*(x.split(documents.lengths, dim=2) for x in (query, key, value)), strict=True):
        for rows, keys, band in bands(q.shape[2], window, q.device):
            out.append(scaled_dot_product_attention(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], attn_mask=band, is_causal=band is None, dropout_p=dropout,
                scale=scaling, enable_gqa=q.shape[1] != k.shape[1]))
    return torch.cat(out, dim=2).to(kept).transpose(1, 2).contiguous()


def bands(length, window, device):
    """(queries, keys, mask) of a document's blocks of `window` queries; a mask is (window, 2 · window) at most."""
    if not window or length <= window:
        yield slice(None), slice(None), None
        return
    for first in range(0, length, window):
        start, last = max(0, first - window), min(first + window, length)
        back = torch.arange(first, last, device=device)[:, None] - torch.arange(start, last, device=device)
        yield slice(first, last), slice(start, last), (back >= 0) & (back < window)  # how far behind its query a key is


def _mask(*args, **kwargs):
    # `generate` drops a mask of ones, so that the absence of one says nothing about packs.
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
