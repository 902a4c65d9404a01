"""Cross entropy of a vocabulary's head in pieces, in MLX: never all logits at a time, nor kept for the way back."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

ROOM = 2**26  # logits at a time: 256 MB in fp32


def per_target(logits: mx.array, answers: mx.array) -> mx.array:
    """(K,) nats. The plain form: -log softmax(logits)[answer], (K, V) in fp32."""
    logits = logits.astype(mx.float32)
    return (
        mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, answers[:, None], axis=-1)[:, 0]
    )


def per_document(
    head: Callable[[mx.array], mx.array],
    hidden: mx.array,
    answers: mx.array,
    weight: mx.array,
    document: mx.array,
    count: int,
    vocabulary: int,
    room: int = ROOM,
) -> mx.array:
    """(count,) Σ weight · nats of each document; `document` (K,): which one a hidden state (K, H) is in."""

    def piece(here: slice) -> Callable[[mx.array], mx.array]:
        return lambda hidden: weight[here] * per_target(head(hidden), answers[here])

    step = max(1, room // vocabulary)
    pieces = [slice(k, k + step) for k in range(0, hidden.shape[0], step)]
    losses = mx.concatenate([mx.checkpoint(piece(here))(hidden[here]) for here in pieces])
    return mx.zeros(count).at[document].add(losses)


def summed(
    head: Callable[[mx.array], mx.array],
    hidden: mx.array,
    answers: mx.array,
    weight: mx.array,
    vocabulary: int,
    room: int = ROOM,
) -> mx.array:
    """Σ weight · nats over (K, H) hidden states; each piece of them computes its logits again on the way back."""

    def piece(here: slice) -> Callable[[mx.array], mx.array]:
        return lambda hidden: (weight[here] * per_target(head(hidden), answers[here])).sum()

    count, step = hidden.shape[0], max(1, room // vocabulary)
    if count <= step:
        return piece(slice(None))(hidden)
    pieces = [slice(k, k + step) for k in range(0, count, step)]
    parts = [mx.checkpoint(piece(here))(hidden[here]) for here in pieces]
    return sum(parts[1:], parts[0])
