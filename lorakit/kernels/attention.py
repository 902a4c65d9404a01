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
SHORT = 512  # tokens up to which a CPU is faster by products in bf16 than by its fused attention
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

    def __init__(self, lengths: Sequence[int], device: torch.device, wide: bool | None = None):
        self.lengths, self.longest = [int(n) for n in lengths], int(max(lengths))
        # In fp32 on a CPU, whose fused backward pass in bf16 takes up to three times as long as that in fp32.
        self.wide = device.type == "cpu" if wide is None else wide
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
    """torch's own attention, one document after the other; short ones in bf16 on a CPU by products alone."""
    out = []
    # split, not slices: its backward pass is one concatenation instead of a zero-filled (N, …) per document.
    for q, k, v in zip(*(x.split(documents.lengths, dim=2) for x in (query, key, value)), strict=True):
        length = q.shape[2]
        if (documents.wide and q.dtype == torch.bfloat16 and length <= min(SHORT, window or SHORT) and not dropout):
            out.append(_Short.apply(q, k, v, scaling or q.shape[-1] ** -0.5))
            continue
        if documents.wide:
            q, k, v = q.float(), k.float(), v.float()
        for rows, keys, band in bands(length, window, q.device):
            out.append(scaled_dot_product_attention(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], attn_mask=band, is_causal=band is None, dropout_p=dropout,
                scale=scaling, enable_gqa=q.shape[1] != k.shape[1]).to(query.dtype))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


class _Short(torch.autograd.Function):
    """A short document: scores, their softmax and its gradient in fp32, all other products in bf16."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        groups, length, width = k.shape[1:]
        rows = q.reshape(groups, -1, width)  # (G, S · T, D): the queries that share a key
        later = torch.full((length, length), -torch.inf, device=q.device).triu_(1).repeat(rows.shape[1] // length, 1)
        scores = torch.baddbmm(later, rows.float(), k[0].float().transpose(1, 2), alpha=scale)
        p = torch.softmax(scores, -1).to(q.dtype)  # (G, S · T, T)
        out = p @ v[0]
        ctx.save_for_backward(rows, k, v, p, out)
        ctx.scale = scale
        return out.view(q.shape)

    @staticmethod
    def backward(ctx, dout):
        rows, k, v, p, out = ctx.saved_tensors
        dout, shape = dout.reshape(rows.shape), dout.shape
        along = (dout.float() * out.float()).sum(-1, keepdim=True)
        ds = (dout @ v[0].transpose(1, 2)).float().sub_(along).mul_(p).mul_(ctx.scale).to(p.dtype)
        return (ds @ k[0]).view(shape), (ds.transpose(1, 2) @ rows)[None], (p.transpose(1, 2) @ dout)[None], None


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
