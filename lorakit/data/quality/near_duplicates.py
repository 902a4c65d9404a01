"""Rows that nearly repeat another (Jaccard index of 3-grams ≥ 0.8 by MinHash) or ask the same; across files: leaks."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lorakit.data import duplicates
from lorakit.data.example import Example
from lorakit.data.quality import Finding, draw_repetitions, repetitions
from lorakit.data.sources import SETS

TITLE = "near repetitions"
SAMPLED = True


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.rows: list[tuple[str, Example]] = []

    def see(self, example: Example, set: str) -> None:
        self.rows.append((set, example))

    @cached_property
    def kept(self) -> list[tuple[str, Example]]:
        """One of each row, as in the split: a test row goes before all others."""
        out: dict[int, tuple[str, Example]] = {}
        for set, example in sorted(self.rows, key=lambda row: -SETS.index(row[0])):
            out.setdefault(duplicates.fingerprint(example), (set, example))
        return [*out.values()]

    @cached_property
    def kinds(self) -> dict[tuple[str, str], list[str]]:
        """(set of the row, set of the first of those it resembles, directly or through others) -> places."""
        examples = [example for _, example in self.kept]
        out: dict[tuple[str, str], list[str]] = {}
        homes: list[int] = []
        if examples:
            same = duplicates.same_prompt(
                np.array([*map(duplicates.prompt_key, examples)], np.uint64)
            )
            pairs = [*duplicates.near_pairs(examples), *same.tolist()]
            homes = duplicates.joined(len(examples), pairs).tolist()
        for place, home in enumerate(homes):
            if place != home:
                (set, row), (other, like) = self.kept[place], self.kept[home]
                out.setdefault((set, other), []).append(f"{row.where} resembles {like.where}")
        return out

    def findings(self) -> list[Finding]:
        return repetitions(
            self.kinds,
            "near repetitions",
            "nearly the same as others in {}; they are kept in one set, so that the test stays fair",
        )

    def facts(self) -> dict[str, Any]:
        return {
            f"within {a}" if a == b else f"{a} and {b}": len(rows)
            for (a, b), rows in self.kinds.items()
        }

    def draw(self, axes: Any) -> int:
        return draw_repetitions(axes, self.kinds, len(self.kept), TITLE)
