"""Texts that nearly repeat another: the Jaccard index of their word 3-grams, estimated by MinHash (Broder 1997).

A sketch holds the least of 128 hashes of a text's 3-grams; the share of equal places in two sketches is the estimate
(its deviation is 0.03 at 0.85). Sketches that agree in all of a band's 8 places are compared, the others are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

PLACES, BAND = 128, 8  # with 16 bands of 8, 1 pair in 20 at an index of 0.8 is never compared
AT_A_TIME = 1000  # texts


def pairs(texts: Iterable[str], least: float) -> list[tuple[int, int]]:
    """Pairs with an index of `least` at least, enough of them to link each text with all it resembles."""
    marks = sketches(texts)
    same = [(int(rows[0]), int(row)) for rows in buckets(marks) for row in rows[1:]]
    others = np.delete(np.arange(len(marks)), [row for _, row in same])
    found = set(same)
    for first in range(0, PLACES, BAND):
        for rows in buckets(marks[others, first : first + BAND]):
            found |= set(links(others[rows], marks, least))
    return sorted(found)


def sketches(texts: Iterable[str]) -> np.ndarray:
    """(texts, 128) uint32"""
    numbers: dict[
        str, int
    ] = {}  # of the words, from 1; 0 stands where a text of one or two words has none
    rng = np.random.default_rng(1)
    factors = rng.integers(2**63, size=(2, PLACES), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts, grams = [np.empty((0, PLACES), np.uint32)], []

    def least() -> np.ndarray:
        hashes, at = mixed(np.concatenate(grams)), np.cumsum([0, *map(len, grams[:-1])])
        return np.stack(
            [
                np.minimum.reduceat((hashes * a + b) >> np.uint64(32), at).astype(np.uint32)
                for a, b in factors.T
            ],
            axis=1,
        )

    for text in texts:
        words = [numbers.setdefault(word, len(numbers) + 1) for word in text.split()]
        words += [0] * (3 - len(words))
        row = np.array(words, dtype=np.uint64)
        grams.append(mixed(mixed(row[:-2]) + row[1:-1]) + row[2:])
        if len(grams) == AT_A_TIME:
            parts.append(least())
            grams.clear()
    return np.concatenate([*parts, least()] if grams else parts)


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


def links(rows: np.ndarray, marks: np.ndarray, least: float) -> Iterator[tuple[int, int]]:
    """Pairs among a bucket's rows: each with the first it resembles, so that equal ones cost little."""
    while len(rows) > 1:
        alike = (marks[rows[1:]] == marks[rows[0]]).mean(1) >= least
        near, rest = rows[1:][alike], rows[1:][~alike]
        yield from ((int(rows[0]), int(row)) for row in near)
        for row in rest if len(near) else ():
            beside = near[(marks[near] == marks[row]).mean(1) >= least]
            if len(beside):
                yield int(min(beside[0], row)), int(max(beside[0], row))
        rows = rest
