"""Rows that repeat another, case and white space aside, over all rows; across files they are leaks."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from lorakit import data
from lorakit.checks import BLUE, RED, YELLOW, Finding, bars, first, some
from lorakit.example import Example

TITLE = "exact repetitions"
SAMPLED = False


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.prints, self.rows, self.files, self.sets = array("Q"), array("L"), array("L"), array("L")
        self.file_numbers: dict[str, int] = {}
        self.set_numbers: dict[str, int] = {}
        self._pairs: dict[int, int] | None = None

    def see(self, example: Example, set: str) -> None:
        self.prints.append(data.fingerprint(example))
        self.rows.append(example.row)
        self.files.append(self.file_numbers.setdefault(example.file, len(self.file_numbers)))
        self.sets.append(self.set_numbers.setdefault(set, len(self.set_numbers)))

    @property
    def pairs(self) -> dict[int, int]:
        """Place of a row that the run leaves out -> place of the one it keeps: the test row before all others."""
        if self._pairs is None:
            order = np.argsort(-np.asarray(self.sets, dtype=np.int64), kind="stable")
            found = data.duplicates(np.asarray(self.prints)[order])
            self._pairs = {int(order[again]): int(order[kept]) for again, kept in found.items()}
        return self._pairs

    def _kinds(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """(set of the row left out, set of the row kept) -> the pairs."""
        names, kinds = [*self.set_numbers], {}
        for pair in self.pairs.items():
            kinds.setdefault(tuple(names[self.sets[place]] for place in pair), []).append(pair)
        return kinds

    def findings(self) -> list[Finding]:
        files, out = [*self.file_numbers], []
        for (left, kept), pairs in self._kinds().items():
            where = ([f"{files[self.files[p]]}:{self.rows[p]}" for p in pair] for pair in pairs)
            words = f"{some(len(pairs))} left out of {left} as repetitions of rows in {kept}"
            if left != kept:
                words += "; a score on rows that were trained on proves nothing"
            out.append(Finding("warning" if left == kept else "wrong", words,
                               first(" repeats ".join(both) for both in where), len(pairs)))
        return out

    def facts(self) -> dict[str, Any]:
        return {f"within {a}" if a == b else f"{a} and {b}": len(pairs) for (a, b), pairs in self._kinds().items()}

    def draw(self, axes: Any) -> int:
        if not self.pairs:
            return 0
        counts = {"different": len(self.prints) - len(self.pairs)}
        colors = {"different": BLUE}
        for (left, kept), pairs in self._kinds().items():
            name = f"repeated in {left}" if left == kept else f"in {left} and in {kept}"
            counts[name], colors[name] = len(pairs), YELLOW if left == kept else RED
        return bars(axes, counts, TITLE, colors)
