"""Rows that nearly repeat another (Jaccard index of word 3-grams ≥ 0.8 by MinHash); across files they are leaks."""

from __future__ import annotations

from typing import Any

from lorakit import data
from lorakit.checks import Finding, first
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
        """Places of rows that resemble each other and are not the same."""
        if self._pairs is None:
            self._pairs = [(a, b) for a, b in data.near_pairs(self.rows)
                           if data.fingerprint(self.rows[a]) != data.fingerprint(self.rows[b])]
        return self._pairs

    def findings(self) -> list[Finding]:
        out = []
        for leak in (False, True):
            pairs = [(a, b) for a, b in self.pairs if (self.sets[a] != self.sets[b]) == leak]
            if pairs:
                words = ("pairs of rows nearly repeat each other in two sets: the later is left out" if leak else
                         "pairs of rows nearly repeat each other; they stay together in one set")
                places = first(f"{self.rows[b].where} resembles {self.rows[a].where}" for a, b in pairs)
                out.append(Finding("wrong" if leak else "warning", f"{len(pairs):,} {words}", places))
        return out

    def facts(self) -> dict[str, Any]:
        return {"pairs": len(self.pairs), "across sets": sum(self.sets[a] != self.sets[b] for a, b in self.pairs)}
