"""Attention over packs beside softmax(QKᵀ s) V with the mask written out, in fp64: outputs and gradients."""

import math

import torch

from lorakit.engines.torch.kernels import attention

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}


def drawn(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(q, k, v, lengths, window, sinks):
    """softmax(QKᵀ s) V with the mask written out, in fp64."""
    shared, place = q.shape[1] // k.shape[1], torch.arange(q.shape[2], device=q.device)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(
        q.device
    )
    behind = place[:, None] - place
    seen = (document[:, None] == document) & (behind >= 0) & (behind < (window or len(place)))
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    if sinks is not None:
        column = sinks[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    return (scores.softmax(-1)[..., : len(place)] @ v).transpose(1, 2)


def both(
    way,
    dtype,
    lengths,
    heads=(4, 2),
    width=16,
    window=None,
    sinks=False,
    of_value=None,
    where="cpu",
):
    """(output, dq, dk, dv, dsinks) of one way, and of the plain form over the same rounded values."""
    total, found = sum(lengths), []
    documents = attention.Documents(lengths, torch.device(where))
    for reference in (False, True):
        q, k, v = (
            drawn(1, h, total, d, seed=s).to(where, dtype).to(torch.float64 if reference else dtype)
            for s, (h, d) in enumerate(
                ((heads[0], width), (heads[1], width), (heads[1], of_value or width))
            )
        )
        sink = drawn(heads[0], seed=7).to(where).float() if sinks else None
        leaves = [x.requires_grad_() for x in (q, k, v, sink) if x is not None]
        if reference:
            out = plain(q, k, v, lengths, window, None if sink is None else sink.double())
        else:
            out = way(q, k, v, documents, None, 0.0, window, sink)
            assert out.dtype == dtype
        weight = drawn(1, total, heads[0], v.shape[-1], seed=9).to(where)
        gradients = torch.autograd.grad((out.double() * weight).sum(), leaves)
        found.append([out, *gradients])
    return zip(*found, strict=True)


def agree(pairs, dtype):
    """-> the largest error, of the other's length."""
    worst = 0.0
    for one, other in pairs:
        off, length = (one.double() - other.double()).norm(), other.double().norm()
        assert off <= TOLERANCE[dtype] * max(length, 1.0)  # zero within a window of one
        worst = max(worst, float(off.detach() / max(float(length), 1.0)))
    return worst
