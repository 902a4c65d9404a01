"""Documents in rows of equal width, none of which sees another: the packed form for MLX.

Its plain form is one document a row. A pack as one single row would cost attention over its whole length; rows as wide
as the longest document, several short ones in each, cost tokens × width and keep the shapes repeating.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from lorakit.tasks.batches import Batch, pieces

STEP = 32  # widths are multiples of it, so that compiled shapes repeat


def rounded(n: int, step: int) -> int:
    """n up to the next multiple of an eighth of its octave, of `step` at least: 12 % more at most."""
    step = max(step, 2 ** max(0, n.bit_length() - 4))
    return -(-n // step) * step


def grid(least: int, most: int) -> list[int]:
    """The rounded numbers between two of them, both included."""
    found = [least]
    while found[-1] < most:
        found.append(rounded(found[-1] + 1, STEP))
    return found


@dataclass(frozen=True)
class Rows:
    """(R, T) tokens; where each token of the batch went."""

    ids: np.ndarray  # (R, T) int32
    document: np.ndarray  # (R, T) int32, -1 where nothing stands
    place: np.ndarray  # (N,) index into R * T of each token of the batch

    @classmethod
    def of(
        cls,
        batch: Batch,
        *,
        packed: bool,
        pad_id: int,
        positions: int | None = None,
        even: float = 4096,
        width: int | None = None,
    ) -> Rows:
        """Of the widths that hold the longest document the one that computes least; unpacked: a document a row.

        `even` is the width at which attention costs as much as all the rest of a layer.
        """
        lengths, longest = batch.lengths.tolist(), int(batch.lengths.max())
        least = rounded(longest, STEP)
        groups = [[d] for d in range(len(lengths))]
        if packed:
            total = rounded(int(sum(lengths)), STEP)
            widths = [width] if width else grid(least, max(least, total))
            ways = [(w, pieces(lengths, len(lengths), w, True)) for w in widths]
            width, groups = min(ways, key=lambda way: len(way[1]) * way[0] * (1 + way[0] / even))
        else:  # a table of positions has no entry beyond
            width = max(longest, min(least, positions or least))
        ids = np.full((len(groups), width), pad_id, dtype=np.int32)
        document, place = np.full_like(ids, -1), np.empty(len(batch.ids), dtype=np.int32)
        starts = np.cumsum(batch.lengths) - batch.lengths
        for r, group in enumerate(groups):
            at = 0
            for d in group:
                here = slice(starts[d], starts[d] + lengths[d])
                ids[r, at : at + lengths[d]], document[r, at : at + lengths[d]] = batch.ids[here], d
                place[here] = r * width + at + np.arange(lengths[d])
                at += lengths[d]
        return cls(ids, document, place)


class Isolated:
    """Stands where mlx-lm's models expect a layer's cache: it keeps nothing and lets a token see its own document.

    Rotary positions are relative, so a document may begin anywhere in its row.
    """

    offset = 0

    def __init__(self, document: mx.array):
        self.document = document  # (R, T)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """(R, 1, T, T), True where the query of a row of it may see the key of a column."""
        place = mx.arange(length)
        seen = place[:, None] >= place[None]
        if window_size is not None:
            seen = seen & (place[:, None] < place[None] + window_size)
        return (self.document[:, None, :, None] == self.document[:, None, None, :]) & seen
