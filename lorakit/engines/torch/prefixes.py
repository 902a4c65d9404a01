"""What of a micro-batch goes through the model as one sequence: the beginning of a row's documents only once.

What a model makes of a token follows from the tokens before it. Both answers of a pair stand behind the same prompt, so
the rejected one is computed alone, from the position at which it parts from the chosen one, and sees the prompt's keys.
What stands behind the last token that predicts a target is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorakit.tasks.batches import Batch


@dataclass(frozen=True)
class Pack:
    """M tokens for a batch of N tokens in D documents; one more document may fill up."""

    ids: np.ndarray  # (M,) int64
    positions: np.ndarray  # (M,) each token's place in its document
    lengths: np.ndarray  # (D,) tokens of each document that are computed
    where: np.ndarray  # (N,) the place in the pack of each token of the batch that is not left out
    # (K,) the places that each document sees, one document after the other, and (D,) how many; None: its own tokens
    keys: np.ndarray | None = None
    key_lengths: np.ndarray | None = None


def pack(batch: Batch, multiple: int = 1, share: bool = False) -> Pack:
    """Documents end to end, filled up to a multiple of so many tokens; `share`: common beginnings of a row once."""
    lengths = needed(batch) if share else batch.lengths
    shared = common(batch, lengths) if share else np.zeros_like(lengths)
    documents, positions = batch.documents, batch.positions
    own = (positions >= shared[documents]) & (positions < lengths[documents])
    begins = np.cumsum(batch.lengths) - batch.lengths
    same = begins[first_of_row(batch)][documents] + positions  # in the first document of the row
    where = (np.cumsum(own) - 1)[np.where(own, np.arange(len(own)), same)]
    filling = np.arange(-int(own.sum()) % multiple)
    filler = [len(filling)] * (len(filling) > 0)
    made = Pack(
        ids=np.append(batch.ids[own], 0 * filling),
        positions=np.append(positions[own], filling),
        lengths=np.append(lengths - shared, filler).astype(np.int64),
        where=where,
    )
    if not shared.any():
        return made
    keys = np.append(where[positions < lengths[documents]], own.sum() + filling)
    key_lengths = np.append(lengths, filler).astype(np.int64)
    return Pack(made.ids, made.positions, made.lengths, where, keys, key_lengths)


def first_of_row(batch: Batch) -> np.ndarray:
    """(D,) the first document of each document's row."""
    starts = batch.starts
    return np.repeat(starts, np.diff(np.append(starts, len(batch.lengths))))


def needed(batch: Batch) -> np.ndarray:
    """(D,) tokens of each document up to the last one that predicts a target; without one, all of them."""
    last = np.zeros_like(batch.lengths)
    np.maximum.at(last, batch.documents[batch.targets], batch.positions[batch.targets])
    return np.where(last > 0, last, batch.lengths)


def common(batch: Batch, lengths: np.ndarray) -> np.ndarray:
    """(D,) tokens with which a document begins as the first one of its row does; of each at least one is its own.

    `lengths` (D,): tokens of each document that count.
    """
    begins = np.cumsum(batch.lengths) - batch.lengths
    shared = np.zeros_like(batch.lengths)
    for document, first in enumerate(first_of_row(batch)):
        if document == first:
            continue
        mine, other = (batch.ids[begins[d] :][: lengths[d]] for d in (document, first))
        most = min(len(mine) - 1, len(other))
        differs = np.flatnonzero(mine[:most] != other[:most])
        shared[document] = differs[0] if len(differs) else most
    return shared
