"""Texts that nearly repeat another by the Jaccard index of their 3-grams (Broder 1997).

Grams are of words, of characters in scripts that put no blanks between words. Grams that half of the texts share (a
fixed instruction, say) tell nothing: two texts are near duplicates when they resemble each other as a whole and in
what is left without those. A text of nothing else resembles none.

MinHash finds the candidates. A sketch holds the least of 128 hashes of a text's 3-grams; the share of equal places in
two sketches estimates the index (its deviation is 0.035 at 0.8). Sketches that agree in all places of a band are
compared, the others are not; where the estimate is near the limit, the grams themselves decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

PLACES, BAND = 128, 6  # with 21 bands of 6, 1 pair in 600 at an index of 0.8 is never compared
OWN_BAND = 4  # with 32 bands of 4, 1 pair in 100 at an index of 0.6
OWN_LESS = 0.2  # what is left without shared grams is short: one other word weighs more there
SLACK = 0.12  # estimates so close to the limit, 3.4 deviations, are decided by the grams
EXACT = 4  # such decisions per text; beyond, estimates count
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
# Whether two texts are near duplicates by their grams; None after many decisions.
Exact = Callable[[int, int], bool | None]


def pairs(texts: Sequence[str], least: float) -> list[tuple[int, int]]:
    """Pairs with an index of `least` at least, enough of them to link each text with all it resembles."""
    grams = Grams()
    shared = shared_grams(texts, grams)
    own, nothing = sketches(texts, grams, shared)
    measures: Measures = [(own, least)]
    if len(shared):
        measures = [(own, max(0.0, least - OWN_LESS)), (sketches(texts, grams)[0], least)]
    band = OWN_BAND if len(shared) else BAND
    telling = np.flatnonzero(~nothing)
    same = [
        (int(telling[rows[0]]), int(telling[row]))
        for rows in buckets(np.concatenate([marks[telling] for marks, _ in measures], axis=1))
        for row in rows[1:]
    ]
    others = np.setdiff1d(telling, [row for _, row in same])
    found = set(same)
    exact = decider(texts, grams, shared, [limit for _, limit in measures])
    for first in range(0, PLACES - band + 1, band):
        for rows in buckets(own[others, first : first + band]):
            found |= set(links(others[rows], measures, exact))
    return sorted(found)


def decider(
    texts: Sequence[str], grams: Grams, shared: np.ndarray, limits: Sequence[float]
) -> Exact:
    """Decides by the grams themselves: those that are not shared, then all."""
    left, common = iter(range(EXACT * len(texts))), frozenset(shared.tolist())

    @lru_cache(maxsize=4096)
    def sets(row: int) -> tuple[frozenset[int], ...]:
        every = frozenset(grams.of(texts[row]).tolist())
        return (every - common, every) if common else (every,)

    decided: dict[tuple[int, int], bool | None] = {}  # a pair meets in several bands

    def exact(one: int, other: int) -> bool | None:
        if (one, other) not in decided:
            decided[one, other] = None if next(left, None) is None else compared(one, other)
        return decided[one, other]

    def compared(one: int, other: int) -> bool:
        for left_grams, right_grams, least in zip(sets(one), sets(other), limits, strict=True):
            both = len(left_grams & right_grams)
            if both < least * (len(left_grams) + len(right_grams) - both):
                return False
        return True

    return exact


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

    def row(self, text: str) -> list[int]:
        """The numbers of a text's pieces, three at least."""
        numbers = self.numbers
        found = [numbers.setdefault(piece, len(numbers) + 1) for piece in pieces(text)]
        return found + [0] * (3 - len(found))

    def of(self, text: str) -> np.ndarray:
        return self.together([self.row(text)])[0]

    @staticmethod
    def together(rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """(the grams of all these texts, how many each has)."""
        places = np.fromiter(chain.from_iterable(rows), np.uint64)
        grams = mixed(mixed(places[:-2]) + places[1:-1]) + places[2:]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        within = np.ones(len(places), bool)  # a gram begins here and ends in the same text
        ends = np.cumsum(lengths)
        within[ends - 1] = within[ends - 2] = False
        return grams[within[:-2]], lengths - 2


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


def sketches(
    texts: Iterable[str], grams: Grams | None = None, without: Any = ()
) -> tuple[np.ndarray, np.ndarray]:
    """(texts, 128) uint32, of the grams that are not in `without`, or of all where none is left; (texts,) for which
    none is."""
    grams = grams or Grams()
    rng = np.random.default_rng(1)
    factors = rng.integers(2**63, size=(2, PLACES), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts: list[np.ndarray] = [np.empty((0, PLACES), np.uint32)]
    nothing: list[np.ndarray] = [np.empty(0, bool)]
    rows: list[list[int]] = []

    def add() -> None:
        found, counts = grams.together(rows)
        text_of = np.repeat(np.arange(len(rows)), counts)
        kept = ~np.isin(found, without) if len(without) else np.ones(len(found), bool)
        left = np.bincount(text_of[kept], minlength=len(rows))
        kept |= (left == 0)[text_of]
        hashes = mixed(found[kept])
        at = np.flatnonzero(np.diff(text_of[kept], prepend=-1))
        parts.append(
            np.stack(
                [
                    np.minimum.reduceat((hashes * a + b) >> np.uint64(32), at).astype(np.uint32)
                    for a, b in factors.T
                ],
                axis=1,
            )
        )
        nothing.append(left == 0)
        rows.clear()

    for text in texts:
        rows.append(grams.row(text))
        if len(rows) == AT_A_TIME:
            add()
    if rows:
        add()
    return np.concatenate(parts), np.concatenate(nothing)


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
    first = np.flatnonzero(np.diff(key[order], prepend=key[order[:1]] + np.uint64(1)))
    sizes = np.diff(first, append=len(key))
    for start, size in zip(first[sizes > 1], sizes[sizes > 1], strict=True):
        yield order[start : start + size]


def links(rows: np.ndarray, measures: Measures, exact: Exact) -> Iterator[tuple[int, int]]:
    """Pairs among a bucket's rows: each with the first it resembles, so that equal ones cost little."""

    def alike(some: np.ndarray, row: int) -> np.ndarray:
        found, sure = np.ones(len(some), bool), np.ones(len(some), bool)
        for marks, least in measures:
            index = (marks[some[found]] == marks[row]).mean(1)
            sure[found] &= index >= least + SLACK
            found[found] = index >= least - SLACK
        for place in np.flatnonzero(found & ~sure):
            other = some[place]
            decided = exact(row, int(other))
            if decided is None:
                decided = all((m[other] == m[row]).mean() >= limit for m, limit in measures)
            found[place] = decided
        return found

    while len(rows) > 1:
        same = alike(rows[1:], int(rows[0]))
        near, rest = rows[1:][same], rows[1:][~same]
        yield from ((int(rows[0]), int(row)) for row in near)
        for row in rest if len(near) else ():
            beside = near[alike(near, int(row))]
            if len(beside):
                yield int(min(beside[0], row)), int(max(beside[0], row))
        rows = rest
