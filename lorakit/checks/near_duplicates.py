"""Rows that nearly repeat another (Jaccard index of word 3-grams ≥ 0.8 by MinHash); across files they are leaks."""

from __future__ import annotations

from typing import Any

from lorakit import data
from lorakit.checks import BLUE, RED, YELLOW, Finding, bars, first, some
from lorakit.example import Example

TITLE = "near repetitions"
SAMPLED = True


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.rows: list[Example] = []
        self.sets: list[str] = []
        self._pairs: list[tuple[int, int]] | None = None

    def see(self, example: Example, set: str) -> None:
        self.rows.append(example)
        self.sets.append(set)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Places of rows that resemble each other and are not the same, the earlier first."""
        if self._pairs is None:
            prints = [data.fingerprint(row) for row in self.rows]
            self._pairs = [(a, b) for a, b in data.near_pairs(self.rows) if prints[a] != prints[b]]
        return self._pairs

    def findings(self) -> list[Finding]:
        out = []
        for leak in (False, True):
            pairs = [(a, b) for a, b in self.pairs if (self.sets[a] != self.sets[b]) == leak]
            if leak:  # the sets come as train, validation, test; what resembles a later one is left out of the earlier
                words = "in two sets that nearly repeat each other; the run leaves out the one named first"
                places = first(f"{self.rows[a].where} ({self.sets[a]}) resembles {self.rows[b].where} "
                               f"({self.sets[b]})" for a, b in pairs)
            else:
                words = "that nearly repeat each other; the run keeps them in one set"
                places = first(f"{self.rows[b].where} resembles {self.rows[a].where}" for a, b in pairs)
            if pairs:
                words = f"{some(len(pairs), 'pair')} of rows {words}"
                out.append(Finding("wrong" if leak else "warning", words, places, len(pairs)))
        return out

    def facts(self) -> dict[str, Any]:
        across = sum(self.sets[a] != self.sets[b] for a, b in self.pairs)
        return {"pairs": len(self.pairs), "across_sets": across}

    def draw(self, axes: Any) -> int:
        if not self.pairs:
            return 0
        leaks = {place for a, b in self.pairs for place in (a, b) if self.sets[a] != self.sets[b]}
        near = {place for pair in self.pairs for place in pair} - leaks
        counts = {"like no other": len(self.rows) - len(near) - len(leaks), "like one in their set": len(near),
                  "like one in another set": len(leaks)}
        colors = dict(zip(counts, (BLUE, YELLOW, RED), strict=True))
        return bars(axes, {name: n for name, n in counts.items() if n}, TITLE, colors)
