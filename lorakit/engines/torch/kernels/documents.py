"""Where the documents of a pack begin and end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lorakit.engines.torch.kernels.device import is_cpu


class Documents:
    """The documents of a pack: `lengths` in tokens, and `ends` (D + 1,) int32, cumulated from zero.

    `keys` (K,): the places in the pack that each document sees, one document after the other, `key_lengths` of each.
    Its own tokens are the last of them. None: it sees its own tokens alone.

    `wide`: whether attention in 16 bits computes in fp32, as a CPU's fused backward pass is up to three times as fast.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        device: torch.device,
        wide: bool | None = None,
        ends: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
        key_lengths: Sequence[int] | np.ndarray | None = None,
    ):
        self.lengths = [int(n) for n in lengths]
        self.keys, seen = keys, lengths if key_lengths is None else key_lengths
        self.key_lengths, self.longest = [int(n) for n in seen], int(max(seen))
        self.wide = is_cpu(device) if wide is None else wide
        if ends is None:
            ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)
        self.ends = ends
        self._causal_masks: dict[int, torch.Tensor] = {}

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,) which document a token belongs to, and (N,) its position in it."""
        ends = self.ends.long()
        document = torch.repeat_interleave(ends.diff(), output_size=sum(self.lengths))
        return document, torch.arange(len(document), device=ends.device) - ends[document]

    def causal_mask(self, count: int) -> torch.Tensor:
        """(count, count), added to scores: -inf above the diagonal. Made once for all layers."""
        if count not in self._causal_masks:
            mask = torch.full((count, count), -torch.inf, device=self.ends.device)
            self._causal_masks[count] = mask.triu_(1)
        return self._causal_masks[count]
