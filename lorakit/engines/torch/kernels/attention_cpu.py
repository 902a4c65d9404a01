"""Attention on a CPU: torch's fused kernel with sinks, and short documents in bf16 by plain products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lorakit.engines.torch.kernels.attention_function import KernelAttention, Tensors

SHORT = 1024  # tokens up to which products in bf16 are faster than the fused kernel
ROUND = 16  # tokens to a multiple of which a short document is padded
BLOCK = 128  # queries at a time, from half as many tokens again on


def serves_sinks(q: torch.Tensor, v: torch.Tensor, dropout: float) -> bool:
    """Whether `fused_with_sinks` computes these."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and not dropout


def fused_with_sinks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    band: torch.Tensor | None,
    scale: float,
    dropout: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """torch's fused attention, (1, H, T, D) each, `band` (T, T) True where a query sees a key."""
    hidden = None
    if band is not None:
        hidden = torch.zeros_like(band, dtype=q.dtype).masked_fill_(~band, -torch.inf)
    causal, options = band is None, {"attn_mask": hidden, "scale": scale}

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, **options
        )
        return out.transpose(1, 2), lse

    def backward(
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> Tensors:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout.transpose(1, 2), q, k, v, out.transpose(1, 2), lse, 0.0, causal, **options
        )

    def by_token(total: torch.Tensor) -> torch.Tensor:
        return total.transpose(1, 2)

    return KernelAttention.apply(q, k, v, sinks, forward, backward, by_token).transpose(1, 2)


class ShortSequenceAttention(torch.autograd.Function):
    """Short documents in bf16: scores, their softmax and its gradient in fp32, all other products in bf16.

    q (1, H, N, D), k and v (1, H_kv, N, D) -> (1, N, H, D). A block of queries meets the keys up to its last one: of a
    long document hardly more than half of the scores. A document is padded to a multiple of `ROUND` tokens, which no
    token sees: oneDNN makes a kernel for every new shape.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: Sequence[int],
        causal_mask: Callable[[int], torch.Tensor],
        sinks: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        out = q.new_empty(q.shape[2], q.shape[1], v.shape[3])
        of_documents: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        for rows, keys, values, part in zip(
            *(x[0].split(lengths, dim=1) for x in (q, k, v)), out.split(lengths), strict=True
        ):
            groups, length = len(keys), round_up(keys.shape[1])
            values = padded(values, length)
            wide = padded(keys, length, torch.float32).transpose(1, 2)
            of_documents.append(values)
            for first, last in blocks(length):
                some = padded(rows[:, first:last], last - first).view(groups, -1, rows.shape[-1])
                # (G, S · n, last): S heads share a key
                scores = scaled(some.float(), wide[:, :, :last], scale)
                square = scores.view(groups, -1, last - first, last)[..., first:]
                square.add_(causal_mask(last - first))
                p, sink_probability = probabilities(scores, sinks, groups, last - first, q.dtype)
                block = p @ values[:, :last]
                unpad_into(part, block, first, last)
                kept += [some, p]
                kept += [] if sink_probability is None else [block, sink_probability]
        ctx.save_for_backward(k, *of_documents, *kept)
        ctx.lengths, ctx.scale, ctx.has_sinks = lengths, scale, sinks is not None
        return out[None]

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dout,) = upstream
        k, *rest = ctx.saved_tensors
        of_documents, kept = rest[: len(ctx.lengths)], rest[len(ctx.lengths) :]
        dsinks: torch.Tensor | None = None
        (_, count, heads, width), (_, groups, _, of_key) = dout.shape, k.shape
        dq = k.new_empty(count, heads, of_key)
        dk, dv = k.new_empty(count, groups, of_key), k.new_empty(count, groups, width)
        documents = zip(
            *(x[0].split(ctx.lengths, dim=1) for x in (dout.transpose(1, 2), k)),
            of_documents,
            *(x.split(ctx.lengths) for x in (dq, dk, dv)),
            strict=True,
        )
        for d_rows, keys, values, *parts in [*documents][::-1]:
            length = values.shape[1]
            keys, of_keys, of_values = padded(keys, length), None, None
            for first, last in blocks(length)[::-1]:  # the last block met all keys
                d = padded(d_rows[:, first:last], last - first).view(groups, -1, width)
                if ctx.has_sinks:
                    sink_probability, block = kept.pop(), kept.pop()
                    along = (d.float() * block.float()).sum(-1, keepdim=True)
                    of_sinks = (sink_probability * along).view(heads, -1).sum(-1)
                    dsinks = -of_sinks if dsinks is None else dsinks - of_sinks
                p, some = kept.pop(), kept.pop()
                # (dp - Σ p dp) p, in fp32 inside; a sink adds nothing to the sum, as its value is zero
                dp = d @ values[:, :last].transpose(1, 2)
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
                unpad_into(parts[0], scaled(ds, keys[:, :last], ctx.scale), first, last)
                if of_keys is None or of_values is None:
                    of_keys = scaled(ds.transpose(1, 2), some, ctx.scale)
                    of_values = p.transpose(1, 2) @ d
                else:
                    of_keys[:, :last].baddbmm_(ds.transpose(1, 2), some, alpha=ctx.scale)
                    of_values[:, :last].baddbmm_(p.transpose(1, 2), d)
            unpad_into(parts[1], of_keys, 0, length)
            unpad_into(parts[2], of_values, 0, length)
        dq, dk, dv = (x[None].transpose(1, 2) for x in (dq, dk, dv))
        return dq, dk, dv, None, None, dsinks, None


def probabilities(
    scores: torch.Tensor, sinks: torch.Tensor | None, groups: int, rows: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(G, S · n, T) fp32 -> softmax in `dtype`, and the sinks' own probability (G, S · n, 1) in fp32."""
    if sinks is None:
        return torch.softmax(scores, -1, out=scores).to(dtype), None
    column = sinks.float().view(groups, -1, 1, 1).expand(-1, -1, rows, 1).reshape(groups, -1, 1)
    p = torch.softmax(torch.cat([scores, column], -1), -1)
    return p[..., :-1].to(dtype).contiguous(), p[..., -1:].clone()


def round_up(length: int) -> int:
    return -(-length // ROUND) * ROUND


def padded(x: torch.Tensor, length: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """(H, T, D) -> (H, length, D), contiguous, zeros at the end."""
    out = x.new_empty(len(x), length, x.shape[2], dtype=dtype)
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = 0
    return out


def unpad_into(part: torch.Tensor, block: torch.Tensor, first: int, last: int) -> None:
    """Writes a block (G, S · n, D) of a document to its place in (T, H, D), without the padding."""
    place, block = part[first:last], block.view(part.shape[1], last - first, -1)
    place.copy_(block[:, : len(place)].transpose(0, 1))


def scaled(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale · a b, (G, N, M) times (G, M, K), rounded once."""
    return torch.baddbmm(a.new_zeros(1, 1, 1), a, b, beta=0, alpha=scale)


def blocks(length: int) -> list[tuple[int, int]]:
    """(first, end) of a document's blocks of queries."""
    step = BLOCK if 2 * length >= 3 * BLOCK else length
    return [(first, min(first + step, length)) for first in range(0, length, step)]
