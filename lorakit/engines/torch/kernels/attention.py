"""Exact attention over a pack: documents end to end in one sequence, none sees another, and no (N, N) mask is built.

A transformers model runs it through its `AttentionInterface` under the name `lorakit`. Called without
`documents` (padded rows, generation) it is transformers' own SDPA attention, which is its plain form, or the eager
attention in the model's own file where the model has sinks: scores that stand in every softmax and gather nothing
(arXiv 2309.17453; gpt-oss).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "lorakit"
SHORT = 1024  # tokens up to which a CPU is faster by products in bf16 than by its fused attention
ROUND = 16  # tokens to a multiple of which a short document is filled up
BLOCK = 128  # queries at a time, from half as many tokens again on
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
        self.wide = device.type == "cpu" if wide is None else wide
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        self.ends = ends.to(device, non_blocking=True)  # (D + 1,)
        self._hiding: dict[int, torch.Tensor] = {}

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,) which document a token belongs to, and (N,) where it stands in it."""
        ends = self.ends.long()
        document = torch.repeat_interleave(ends.diff(), output_size=sum(self.lengths))
        return document, torch.arange(len(document), device=ends.device) - ends[document]

    def hiding(self, count: int) -> torch.Tensor:
        """(count, count): what is added to scores, so that a query sees no later key. Made once for all layers."""
        if count not in self._hiding:
            self._hiding[count] = torch.full(
                (count, count), -torch.inf, device=self.ends.device
            ).triu_(1)
        return self._hiding[count]


def packed_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    documents=None,
    sliding_window=None,
    **kwargs,
):
    """query (1, H, N, D), key and value (1, H_kv, N, D), `documents` of N tokens together -> ((1, N, H, D), None).

    Sinks (H,) come as `s_aux`. Raises `ValueError` for a model that computes a mask of its own, or something else.
    """
    if documents is None:
        plain = as_written if "s_aux" in kwargs else sdpa_attention_forward
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
    if more := sorted(
        name for name in ("softcap", "position_bias") if kwargs.get(name) is not None
    ):
        raise ValueError(f"{type(module).__name__} brings a {more[0]}")
    with torch.autocast(query.device.type, enabled=False):
        out = form(query)(
            query, key, value, documents, scaling, dropout, sliding_window, kwargs.get("s_aux")
        )
    return out, None


def as_written(module, query, key, value, attention_mask, **kwargs):
    """The eager attention of the file that the module is from, which adds its mask to the scores."""
    if (
        attention_mask is None and query.shape[2] > 1
    ):  # where sdpa_mask leaves one out, it is this one
        attention_mask = torch.ones(
            query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
        ).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        hidden = query.new_full((), torch.finfo(query.dtype).min)
        attention_mask = torch.where(attention_mask, hidden.new_zeros(()), hidden)
    return sys.modules[type(module).__module__].eager_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )


def form(query: torch.Tensor) -> Callable:
    """The fastest exact one for this device and precision."""
    if query.device.type != "cuda" or query.shape[-1] % 8:
        return by_document
    half, capability = query.dtype != torch.float32, torch.cuda.get_device_capability(query.device)
    return flash if half and capability >= (8, 0) and query.shape[-1] <= 256 else efficient


def flash(query, key, value, documents, scaling, dropout, window, sinks=None):
    """FlashAttention over documents of any length (arXiv 2307.08691), compute capability 8.0 and later."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
    ends, longest = documents.ends, documents.longest
    left, right = (window - 1, 0) if window else (None, None)
    options = {"scale": scaling, "window_size_left": left, "window_size_right": right}

    def forward(q, k, v):
        out, lse, *drawn, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, ends, ends, longest, longest, dropout, True, False, **options
        )
        return out, lse, drawn

    def backward(dout, q, k, v, out, lse, drawn):
        return torch.ops.aten._flash_attention_backward(
            dout, q, k, v, out, lse, ends, ends, longest, longest, dropout, True, *drawn, **options
        )

    if sinks is None:
        return forward(query, key, value)[0][None]
    return _Sunk.apply(query, key, value, sinks, forward, backward, lambda each: each.t())[None]


def efficient(query, key, value, documents, scaling, dropout, window, sinks=None):
    """Memory-efficient attention over documents of any length (arXiv 2112.05682), on any card, in fp32 too."""
    shared = query.shape[1] // key.shape[1]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (1, N, H, D)
    if shared > 1:
        key, value = key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2)
    ends, longest, options = (
        documents.ends,
        documents.longest,
        {"scale": scaling, "window_size": window},
    )

    def forward(q, k, v):
        out, lse, *drawn, _, _ = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, ends, ends, longest, longest, dropout, 1, True, **options
        )
        return out, lse, drawn

    def backward(dout, q, k, v, out, lse, drawn):
        return torch.ops.aten._efficient_attention_backward(
            dout,
            q,
            k,
            v,
            None,
            out,
            ends,
            ends,
            longest,
            longest,
            lse,
            dropout,
            *drawn,
            1,
            False,
            **options,
        )[:3]

    if sinks is None:
        return forward(query, key, value)[0]
    document, place = documents.places()
    return _Sunk.apply(
        query, key, value, sinks, forward, backward, lambda each: each[document, :, place][None]
    )


def by_document(query, key, value, documents, scaling, dropout, window, sinks=None):
    """torch's own attention, one document after the other; short ones in bf16 on a CPU by products alone."""
    out, scaling = [], scaling or query.shape[-1] ** -0.5
    # A CPU's fused backward pass in bf16 takes up to three times as long as that in fp32; its forward pass is fastest.
    wide = (
        documents.wide
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in (query, key, value))
    )
    short = (
        min(SHORT, window or SHORT) if wide and query.dtype == torch.bfloat16 and not dropout else 0
    )
    if documents.longest <= short:
        return _Short.apply(query, key, value, documents.lengths, documents.hiding, sinks, scaling)
    # split, not slices: its backward pass is one concatenation instead of a zero-filled (N, …) per document.
    for q, k, v in zip(
        *(x.split(documents.lengths, dim=2) for x in (query, key, value)), strict=True
    ):
        length = q.shape[2]
        if length <= short:
            out.append(
                _Short.apply(q, k, v, [length], documents.hiding, sinks, scaling).transpose(1, 2)
            )
            continue
        if wide:
            q, k, v = q.float(), k.float(), v.float()
        way = whole if sinks is None else sunk if served(q, v, dropout) else written_out
        for rows, keys, band in bands(length, window, q.device):
            out.append(
                way(q[:, :, rows], k[:, :, keys], v[:, :, keys], band, scaling, dropout, sinks).to(
                    query.dtype
                )
            )
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


def served(q, v, dropout):
    """Whether `sunk` can."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and not dropout


def whole(q, k, v, band, scale, dropout, sinks):
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


def sunk(q, k, v, band, scale, dropout, sinks):
    """torch's fused attention on a CPU, with sinks."""
    hidden = (
        None
        if band is None
        else torch.zeros_like(band, dtype=q.dtype).masked_fill_(~band, -torch.inf)
    )
    options = {"attn_mask": hidden, "scale": scale}

    def forward(q, k, v):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, band is None, **options
        )
        return out.transpose(1, 2), lse, []

    def backward(dout, q, k, v, out, lse, _):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout.transpose(1, 2), q, k, v, out.transpose(1, 2), lse, 0.0, band is None, **options
        )

    return _Sunk.apply(
        q, k, v, sinks, forward, backward, lambda each: each.transpose(1, 2)
    ).transpose(1, 2)


def written_out(q, k, v, band, scale, dropout, sinks):
    """Every score and the sink beside them: where no kernel tells the sum of its softmax."""
    shared, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    seen = (
        torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        if band is None
        else band
    )
    scores = (q @ k.transpose(2, 3)).float().mul(scale).masked_fill(~seen, -torch.inf)
    beside = sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
    p = torch.cat([scores, beside], -1).softmax(-1)[..., :-1].to(v.dtype)
    return torch.dropout(p, dropout, dropout > 0) @ v


class _Sunk(torch.autograd.Function):
    """Attention whose softmax has one score more, a head's sink: `forward` knows nothing of it, and is corrected.

    A kernel's backward pass finds the probabilities and the mean of their gradients from its output and the logarithm
    of the softmax's sum: given both with the sink in them it is exact. That sum is (…, H, T), the output (…, T, H, D);
    `tokens` brings the one to the other's order.
    """

    @staticmethod
    def forward(ctx, q, k, v, sinks, forward, backward, tokens):
        out, total, drawn = forward(q, k, v)
        more = torch.logaddexp(total, sinks.to(total.dtype)[:, None])
        out = out * tokens(torch.exp(total - more))[..., None].to(out.dtype)
        ctx.save_for_backward(q, k, v, out, more, sinks, *drawn)
        ctx.back, ctx.tokens = backward, tokens
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, more, sinks, *drawn = ctx.saved_tensors
        dsinks = None
        if ctx.needs_input_grad[3]:
            share = ctx.tokens(
                torch.exp(sinks.to(more.dtype)[:, None] - more)
            )  # what the sink takes
            dsinks = (
                -(share * (dout.float() * out.float()).sum(-1))
                .flatten(0, -2)
                .sum(0)
                .to(sinks.dtype)
            )
        return *ctx.back(dout.contiguous(), q, k, v, out, more, drawn), dsinks, None, None, None


class _Short(torch.autograd.Function):
    """Short documents: scores, their softmax and its gradient in fp32, all other products in bf16.

    A block of queries meets the keys up to its last one: of a long document hardly more than half of the scores. A
    document is filled up to a round number of tokens, which nothing sees: oneDNN makes a kernel for every new shape.
    """

    @staticmethod
    def forward(ctx, q, k, v, lengths, hiding, sinks, scale):
        out, of_documents, kept = q.new_empty(q.shape[2], q.shape[1], v.shape[3]), [], []
        for rows, keys, values, part in zip(
            *(x[0].split(lengths, dim=1) for x in (q, k, v)), out.split(lengths), strict=True
        ):
            groups, length = len(keys), round_up(keys.shape[1])
            values, wide = (
                filled(values, length),
                filled(keys, length, torch.float32).transpose(1, 2),
            )
            of_documents.append(values)
            for first, last in blocks(length):
                some = filled(rows[:, first:last], last - first).view(groups, -1, rows.shape[-1])
                scores = scaled(
                    some.float(), wide[:, :, :last], scale
                )  # (G, S · n, last): S heads share a key
                scores.view(groups, -1, last - first, last)[..., first:].add_(hiding(last - first))
                share = None
                if sinks is None:
                    p = torch.softmax(scores, -1, out=scores).to(q.dtype)
                else:
                    beside = sinks.float().view(groups, -1, 1, 1).expand(-1, -1, last - first, 1)
                    p = torch.softmax(torch.cat([scores, beside.reshape(groups, -1, 1)], -1), -1)
                    share, p = (
                        p[..., -1:].clone(),
                        p[..., :-1].to(q.dtype).contiguous(),
                    )  # what the sink takes
                found = p @ values[:, :last]
                into(part, found, first, last)
                kept += [some, p, *([] if sinks is None else [found, share])]
        ctx.save_for_backward(k, *of_documents, *kept)
        ctx.lengths, ctx.scale, ctx.sunk = lengths, scale, sinks is not None
        return out[None]

    @staticmethod
    def backward(ctx, dout):
        k, *kept = ctx.saved_tensors
        of_documents, kept, dsinks = kept[: len(ctx.lengths)], kept[len(ctx.lengths) :], 0.0
        (_, count, heads, width), (_, groups, _, of_key) = dout.shape, k.shape
        dq, dk, dv = (
            k.new_empty(count, *s) for s in ((heads, of_key), (groups, of_key), (groups, width))
        )
        documents = zip(
            *(x[0].split(ctx.lengths, dim=1) for x in (dout.transpose(1, 2), k)),
            of_documents,
            *(x.split(ctx.lengths) for x in (dq, dk, dv)),
            strict=True,
        )
        for d_rows, keys, values, *parts in [*documents][::-1]:
            length, of_keys, of_values = values.shape[1], None, None
            keys = filled(keys, length)
            for first, last in blocks(length)[::-1]:  # the last block met all keys
                d = filled(d_rows[:, first:last], last - first).view(groups, -1, width)
                if ctx.sunk:
                    share, found = kept.pop(), kept.pop()
                    along = (d.float() * found.float()).sum(-1, keepdim=True)
                    dsinks = dsinks - (share * along).view(heads, -1).sum(-1)
                p, some = kept.pop(), kept.pop()
                # (dp - Σ p dp) p, in fp32 inside; a sink adds nothing to the sum, as its value is zero
                ds = torch._softmax_backward_data(
                    d @ values[:, :last].transpose(1, 2), p, -1, p.dtype
                )
                into(parts[0], scaled(ds, keys[:, :last], ctx.scale), first, last)
                if of_keys is None:
                    of_keys, of_values = (
                        scaled(ds.transpose(1, 2), some, ctx.scale),
                        p.transpose(1, 2) @ d,
                    )
                else:
                    of_keys[:, :last].baddbmm_(ds.transpose(1, 2), some, alpha=ctx.scale)
                    of_values[:, :last].baddbmm_(p.transpose(1, 2), d)
            into(parts[1], of_keys, 0, length)
            into(parts[2], of_values, 0, length)
        dq, dk, dv = (x[None].transpose(1, 2) for x in (dq, dk, dv))
        return dq, dk, dv, None, None, dsinks if ctx.sunk else None, None


def round_up(length: int) -> int:
    return -(-length // ROUND) * ROUND


def filled(x: torch.Tensor, length: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """(H, T, D) -> (H, length, D), zeros at the end, in one piece."""
    found = x.new_empty(len(x), length, x.shape[2], dtype=dtype)
    found[:, : x.shape[1]] = x
    found[:, x.shape[1] :] = 0
    return found


def into(part: torch.Tensor, block: torch.Tensor, first: int, last: int) -> None:
    """A block (G, S · n, D) of a document into its place in (T, H, D); what was filled up is left out."""
    place, block = part[first:last], block.view(part.shape[1], last - first, -1)
    place.copy_(block[:, : len(place)].transpose(0, 1))


def scaled(a, b, scale):
    """scale · a b, (G, N, M) times (G, M, K), rounded once."""
    return torch.baddbmm(a.new_zeros(1, 1, 1), a, b, beta=0, alpha=scale)


def blocks(length):
    """(first, end) of a document's blocks of queries."""
    step = BLOCK if 2 * length >= 3 * BLOCK else length
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def bands(length, window, device):
    """(queries, keys, mask) of a document's blocks of `window` queries; a mask is (window, 2 · window) at most."""
    if not window or length <= window:
        yield slice(None), slice(None), None
        return
    for first in range(0, length, window):
        start, last = max(0, first - window), min(first + window, length)
        back = torch.arange(first, last, device=device)[:, None] - torch.arange(
            start, last, device=device
        )
        yield (
            slice(first, last),
            slice(start, last),
            (back >= 0) & (back < window),
        )  # how far behind its query a key is


def _mask(*args, **kwargs):
    # `generate` drops a mask of ones, so that the absence of one says nothing about packs.
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
