"""Rows that equal another in every character, over all rows; across files they are leaks."""

from __future__ import annotations

from array import array
from functools import cached_property
from typing import Any

import numpy as np

from lorakit.data import duplicates
from lorakit.data.example import Example
from lorakit.data.quality import Finding, draw_repetitions, repetitions
from lorakit.data.sources import SETS

TITLE = "exact repetitions"
SAMPLED = False


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.prints, self.rows, self.files, self.sets = (
            array("Q"),
            array("L"),
            array("L"),
            array("B"),
        )
        self.numbers: dict[str, int] = {}  # of the files

    def see(self, example: Example, set: str) -> None:
        self.prints.append(duplicates.fingerprint(example))
        self.rows.append(example.row)
        self.files.append(self.numbers.setdefault(example.file, len(self.numbers)))
        self.sets.append(SETS.index(set))

    @cached_property
    def kinds(self) -> dict[tuple[str, str], list[str]]:
        """(set of the row left out, set of the row kept) -> places. As in the split, test rows go before all others."""
        order = np.argsort(-np.asarray(self.sets, dtype=np.int64), kind="stable")
        names = [*self.numbers]
        out: dict[tuple[str, str], list[str]] = {}
        for again, kept in duplicates.duplicates(np.asarray(self.prints)[order]).items():
            pair = int(order[again]), int(order[kept])
            places = out.setdefault((SETS[self.sets[pair[0]]], SETS[self.sets[pair[1]]]), [])
            places.append(" repeats ".join(f"{names[self.files[p]]}:{self.rows[p]}" for p in pair))
        return out

    def findings(self) -> list[Finding]:
        return repetitions(
            self.kinds, "repetitions", "left out of {} as repetitions of other rows there"
        )

    def facts(self) -> dict[str, Any]:
        return {
            f"within {a}" if a == b else f"{a} and {b}": len(rows)
            for (a, b), rows in self.kinds.items()
        }

    def draw(self, axes: Any) -> int:
        return draw_repetitions(axes, self.kinds, len(self.prints), TITLE)
