"""Constrained decoding in transformers' `generate` (Willard & Louf, arXiv 2307.09702)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Accepted:
    """transformers' logits processor that leaves the most probable token which `accepts` lets stand.

    Tokens are tried in the order of their logits, so that of a large vocabulary few are looked at. Where none is
    accepted, the answer ends.
    """

    def __init__(
        self, accepts: Callable[[Sequence[int]], bool], width: int, stop_ids: Sequence[int]
    ):
        self.accepts, self.width, self.stop_ids = accepts, width, stop_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, T) ids and (B, V) scores -> (B, V), -inf for all but one token of each row."""
        chosen = []
        for ids, order in zip(
            input_ids[:, self.width :].tolist(), scores.argsort(-1, descending=True), strict=True
        ):
            ended = any(i in self.stop_ids for i in ids)
            tried = iter(()) if ended else (i for i in order.tolist() if self.accepts([*ids, i]))
            chosen.append(next(tried, self.stop_ids[0] if self.stop_ids else int(order[0])))
        places = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, places, 0.0)
