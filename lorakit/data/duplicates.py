"""Equal rows and near duplicates.

Near: Jaccard index of word 3-grams of at least 0.8, estimated by MinHash; of pictures a perceptual hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from lorakit.data import media, minhash
from lorakit.data.example import Example
from lorakit.data.report import shown

NEAR = 0.8  # Jaccard index from which two rows count as near duplicates


def text(example: Example) -> str:
    """All the words of an example, for comparisons."""
    fields = example.fields
    turns = fields.get("messages") or fields.get("turns")
    if not turns:
        return "\n".join(filter(None, (fields.get("question"), fields["text"])))
    return "\n".join(m.get("content") or json.dumps(m.get("tool_calls")) for m in turns)


def normal(words: str) -> str:
    """Case and white space aside."""
    return " ".join(words.casefold().split())


def fingerprint(example: Example) -> int:
    """64 bits that equal examples share."""
    content = (medium["sha256"] for medium in example.fields.get("media", ()))
    words = "\n".join([normal(text(example)), *content]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest())


def duplicates(fingerprints: Sequence[int] | np.ndarray) -> dict[int, int]:
    """Index of every exact repetition -> index of the first."""
    _, first, group = np.unique(
        np.asarray(fingerprints, dtype=np.uint64), return_index=True, return_inverse=True
    )
    again = np.flatnonzero(first[group] != np.arange(len(group)))
    return {int(i): int(first[group[i]]) for i in again}


def joined(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(n,) for each of n things the smallest index among those it is linked to, directly or by others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(list(pairs), dtype=np.int64).reshape(-1, 2)
    _, group = connected_components(
        coo_array((np.ones(len(ends), bool), ends.T), shape=(n, n)), directed=False
    )
    return np.unique(group, return_index=True)[1][group]


def near_pairs(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Pairs of near duplicates, enough of them to link each with all it resembles."""
    if len(examples) and "media" in examples[0].fields:  # their words repeat, their pictures do not
        first = [example.fields["media"][0]["look"] for example in examples]
        return media.alike(first)
    return minhash.pairs(
        (normal(text(example)) for example in shown(examples, "near duplicates")), NEAR
    )
