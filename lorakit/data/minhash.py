"""Texts that nearly repeat another: the Jaccard index of their 3-grams, estimated by MinHash (Broder 1997).

Grams are of words, of characters in scripts that put no blanks between words. Grams that half of the texts share (a
fixed instruction, say) tell nothing: two texts are near duplicates when they resemble each other as a whole and in
what is left without those.

A sketch holds the least of 128 hashes of a text's 3-grams; the share of equal places in two sketches is the estimate
(its deviation is 0.03 at 0.85). Sketches that agree in all places of a band are compared, the others are not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

PLACES, BAND = 128, 8  # with 16 bands of 8, 1 pair in 20 at an index of 0.8 is never compared
OWN_BAND = 4  # with 32 bands of 4, 1 pair in 100 at an index of 0.6
OWN_LESS = 0.2  # what is left without shared grams is short: one other word weighs more there
AT_A_TIME = 1000  # texts
SHARED, ASKED, FEW = 0.5, 1000, 20  # share of texts; texts asked at most; of fewer none is shared
# Thai, Lao, Myanmar, Khmer, Japanese, Chinese
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
PIECES = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
ANY_UNSPACED = re.compile(f"[{UNSPACED}]")

Measures = list[tuple[np.ndarray, float]]  # sketches (n, 128), the least index by them


def pairs(texts: Sequence[str], least: float) -> list[tuple[int, int]]:
    """Pairs with an index of `least` at least, enough of them to link each text with all it resembles."""
    grams = Grams()
    shared = shared_grams(texts, grams)
    own = sketches(texts, grams, shared)
    measures: Measures = [(own, least)]
    if len(shared):
        measures = [(own, max(0.0, least - OWN_LESS)), (sketches(texts, grams), least)]
    band = OWN_BAND if len(shared) else BAND
    same = [
        (int(rows[0]), int(row))
        for rows in buckets(np.concatenate([marks for marks, _ in measures], axis=1))
        for row in rows[1:]
    ]
    others = np.delete(np.arange(len(own)), [row for _, row in same])
    found = set(same)
    for first in range(0, PLACES, band):
        for rows in buckets(own[others, first : first + band]):
            found |= set(links(others[rows], measures))
    return sorted(found)


def pieces(text: str) -> list[str]:
    """Words; characters where the script has no blanks."""
    if text.isascii() or not ANY_UNSPACED.search(text):
        return text.split()
    return PIECES.findall(text)


class Grams:
    """Texts as 64-bit hashes of their 3-grams."""

    def __init__(self) -> None:
        self.numbers: dict[
            str, int
        ] = {}  # of the pieces, from 1; 0 stands where a text has too few

    def of(self, text: str) -> np.ndarray:
        numbers = self.numbers
        row = [numbers.setdefault(piece, len(numbers) + 1) for piece in pieces(text)]
        row += [0] * (3 - len(row))
        places = np.array(row, dtype=np.uint64)
        return mixed(mixed(places[:-2]) + places[1:-1]) + places[2:]


def shared_grams(texts: Sequence[str], grams: Grams) -> np.ndarray:
    """The 3-grams, sorted, that half of the texts hold; none where the texts are few. Looks at 1,000 texts at most."""
    step = max(1, len(texts) // ASKED)
    asked = range(0, len(texts), step)
    if len(texts) < FEW:
        return np.empty(0, np.uint64)
    counts: Counter[int] = Counter()
    for i in asked:
        counts.update(set(grams.of(texts[i]).tolist()))
    least = SHARED * len(asked)
    return np.array(sorted(g for g, n in counts.items() if n >= least), dtype=np.uint64)


def sketches(texts: Iterable[str], grams: Grams | None = None, without: Any = ()) -> np.ndarray:
    """(texts, 128) uint32, of the grams that are not in `without`, or of all where none is left."""
    grams = grams or Grams()
    rng = np.random.default_rng(1)
    factors = rng.integers(2**63, size=(2, PLACES), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts: list[np.ndarray] = [np.empty((0, PLACES), np.uint32)]
    held: list[np.ndarray] = []

    def least() -> np.ndarray:
        hashes, at = mixed(np.concatenate(held)), np.cumsum([0, *map(len, held[:-1])])
        return np.stack(
            [
                np.minimum.reduceat((hashes * a + b) >> np.uint64(32), at).astype(np.uint32)
                for a, b in factors.T
            ],
            axis=1,
        )

    for text in texts:
        row = grams.of(text)
        if len(without):
            own = row[~np.isin(row, without)]
            row = own if len(own) else row
        held.append(row)
        if len(held) == AT_A_TIME:
            parts.append(least())
            held.clear()
    return np.concatenate([*parts, least()] if held else parts)


def mixed(x: np.ndarray) -> np.ndarray:
    """Every bit depends on every bit: the end of splitmix64."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def buckets(places: np.ndarray) -> Iterator[np.ndarray]:
    """The rows that are equal in all places (n, k), by their indices, wherever there are several."""
    key = np.zeros(len(places), np.uint64)
    for column in places.T:
        key = mixed(key + column)
    order = np.argsort(key, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        if len(some) > 1:
            yield some


def links(rows: np.ndarray, measures: Measures) -> Iterator[tuple[int, int]]:
    """Pairs among a bucket's rows: each with the first it resembles, so that equal ones cost little."""

    def alike(some: np.ndarray, row: int) -> np.ndarray:
        found = np.ones(len(some), bool)
        for marks, least in measures:
            found[found] = (marks[some[found]] == marks[row]).mean(1) >= least
        return found

    while len(rows) > 1:
        same = alike(rows[1:], rows[0])
        near, rest = rows[1:][same], rows[1:][~same]
        yield from ((int(rows[0]), int(row)) for row in near)
        for row in rest if len(near) else ():
            beside = near[alike(near, row)]
            if len(beside):
                yield int(min(beside[0], row)), int(max(beside[0], row))
        rows = rest
