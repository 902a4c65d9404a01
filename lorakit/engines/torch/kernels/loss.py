"""The head and its cross entropy in one: logits exist for a few tokens at a time, and their gradient replaces them.

Memory beyond the hidden states is one chunk of logits, whatever the vocabulary times tokens. The plain form is
`F.cross_entropy(head(hidden).float(), target_ids, reduction="sum")`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lorakit.engines.torch.kernels import products
from lorakit.engines.torch.kernels.device import PAD_MULTIPLE, is_cpu, pad_multiple

CHUNK = 2**26  # logits at a time: 128 MB in bf16
SMALL = 2**24  # on a CPU
HEADROOM = (
    2.0**8
)  # of the logits' gradient in fp16, at most 1: keeps probabilities above 2e-10 from vanishing
CACHED = 2**18  # of those, on a CPU, as many are widened to fp32 at a time: 1 MB


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """hidden (K, H), weight (V, H), target_ids (K,) -> summed loss in nats, fp32, differentiable.

    Logits are `scale` · hidden · weightᵀ; with `softcap` c (Gemma 2) they become c · tanh(logits / c).
    """
    return SummedCrossEntropy.apply(hidden, weight, target_ids, scale, softcap)


def document_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    document: torch.Tensor,
    count: int,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """(count,) summed losses of documents, each with a gradient of its own; `document` (K,): which one a target is in.

    Otherwise as `linear_cross_entropy`: memory beyond the hidden states and their gradient is one chunk of logits.
    """
    losses = _PerTarget.apply(hidden, weight, target_ids, scale, softcap)
    return losses.new_zeros(count).index_add(0, document, losses)


def logits(
    hidden: torch.Tensor, weight: torch.Tensor, scale: float = 1.0, softcap: float | None = None
) -> torch.Tensor:
    """(K, V) in fp32."""
    if products.is_half_of(weight.dtype, hidden.dtype):
        half, powers = products.normalized(hidden, weight.dtype)
        return capped((half @ weight.t()).float().mul_(powers), scale, softcap)
    return capped((hidden @ weight.t().to(hidden.dtype)).float(), scale, softcap)


def capped(found: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Products in fp32 -> logits, in place."""
    if scale != 1.0:
        found.mul_(scale)
    return found if softcap is None else found.div_(softcap).tanh_().mul_(softcap)


@torch.no_grad()
def scores(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) losses in nats, fp32; (K,) whether the answer is the most likely token."""
    losses, right = [], []
    for rows, wanted in zip(
        hidden.split(step(hidden, weight)), target_ids.split(step(hidden, weight)), strict=True
    ):
        found = logits(rows, weight, scale, softcap)
        losses.append(F.cross_entropy(found, wanted, reduction="none"))
        right.append(found.argmax(-1) == wanted)
    return torch.cat(losses), torch.cat(right)


def step(hidden: torch.Tensor, weight: torch.Tensor) -> int:
    """Tokens at a time."""
    found = max(16, (SMALL if is_cpu(hidden.device) else CHUNK) // len(weight))
    return found - found % PAD_MULTIPLE or found


def narrow(hidden: torch.Tensor, weight: torch.Tensor) -> int:
    """Tokens at a time whose logits a CPU's cache holds; a card takes all there are."""
    return max(1, CACHED // len(weight)) if is_cpu(hidden.device) else len(hidden)


class SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target_ids: torch.Tensor,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            size, few, count = step(hidden, weight), narrow(hidden, weight), len(hidden)
            if lacking := -count % pad_multiple(hidden.device, hidden.dtype):
                hidden = F.pad(hidden, (0, 0, 0, lacking))
            needs, trained = ctx.needs_input_grad[:2]
            half = products.is_half_of(weight.dtype, hidden.dtype)
            weight = weight if half else weight.to(hidden.dtype)
            up = headroom(weight)
            gradient = torch.empty_like(hidden) if needs else None
            of_weight = torch.zeros_like(weight, dtype=torch.float32) if trained else None
            room = weight.new_empty(min(size, len(hidden)), len(weight))
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for first in range(0, count, size):
                rows, asked = hidden[first : first + size], target_ids[first : first + size, None]
                powers = None
                if half:
                    rows, powers = products.normalized(rows, weight.dtype)
                found = torch.mm(rows, weight.t(), out=room[: len(rows)])
                for start in range(0, len(asked), few):
                    here = slice(start, min(start + few, len(asked)))
                    wide = found[here].float()
                    if powers is not None:
                        wide.mul_(powers[here])
                    total += differentiated(
                        wide, asked[here], scale, softcap, needs or trained
                    ).sum()
                    if needs or trained:
                        found[here].copy_(wide if up == 1 else wide.mul_(up))
                if gradient is not None:
                    into = gradient[first : first + size]
                    if half:
                        into.copy_(found @ weight)
                    else:
                        torch.mm(found, weight, out=into)
                if of_weight is not None:
                    of_weight += (found.t() @ rows).float()
        ctx.save_for_backward(gradient if gradient is None else gradient[:count], of_weight)
        ctx.up = up
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, of_weight = ctx.saved_tensors
        factor = upstream[0] / ctx.up
        return (
            None if gradient is None else gradient * factor.to(gradient.dtype),
            None if of_weight is None else of_weight * factor,
            None,
            None,
            None,
        )


class _PerTarget(torch.autograd.Function):
    """(K,) losses. The hidden states' gradient is made on the way, the trained head's on the way back."""

    @staticmethod
    def forward(ctx, hidden, weight, target_ids, scale, softcap):
        needs, ctx.up = ctx.needs_input_grad[0], headroom(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            gradient = torch.empty_like(hidden) if needs else None
            losses = []
            for rows in slices(hidden, weight):
                found = logits(hidden[rows], weight)
                losses.append(differentiated(found, target_ids[rows, None], scale, softcap, needs))
                if gradient is not None:
                    gradient[rows] = products.back(found.mul_(ctx.up).to(hidden.dtype), weight)
        kept = (hidden, weight, target_ids) if ctx.needs_input_grad[1] else (None, None, None)
        ctx.save_for_backward(gradient, *kept)
        ctx.scale, ctx.softcap = scale, softcap
        return torch.cat(losses)[:, 0] if losses else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx, upstream):
        gradient, hidden, weight, target_ids = ctx.saved_tensors
        of_weight = None
        if hidden is not None:
            with torch.autocast(hidden.device.type, enabled=False):
                of_weight = torch.zeros_like(weight, dtype=torch.float32)
                for rows in slices(hidden, weight):
                    found = logits(hidden[rows], weight)
                    differentiated(found, target_ids[rows, None], ctx.scale, ctx.softcap, True)
                    found.mul_(upstream[rows, None])
                    of_weight += (found.to(hidden.dtype).t() @ hidden[rows]).float()
        if gradient is not None:
            gradient = gradient * (upstream / ctx.up)[:, None].to(gradient.dtype)
        return gradient, of_weight, None, None, None


def headroom(computed: torch.Tensor) -> float:
    """What the logits' gradient is multiplied by, and the hidden states' divided by in the end."""
    return HEADROOM if computed.dtype == torch.float16 else 1.0


def slices(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    """The tokens, as many at a time as `step` says."""
    size = step(hidden, weight)
    return [slice(first, first + size) for first in range(0, len(hidden), size)]


def differentiated(
    found: torch.Tensor, wanted: torch.Tensor, scale: float, softcap: float | None, needed: bool
) -> torch.Tensor:
    """Products (n, V) in fp32, target_ids (n, 1) -> losses (n, 1); in place the products become their gradient."""
    found = capped(found, scale, softcap)
    slope = None if softcap is None or not needed else 1 - (found / softcap).square_()
    at, top = found.gather(1, wanted), found.amax(1, keepdim=True)
    norm = found.sub_(top).exp_().sum(1, keepdim=True)
    if needed:  # softmax minus one-hot
        found.div_(norm).scatter_add_(1, wanted, torch.full_like(at, -1.0))
        if slope is not None:
            found.mul_(slope)
        if scale != 1.0:
            found.mul_(scale)
    return norm.log() + top - at
