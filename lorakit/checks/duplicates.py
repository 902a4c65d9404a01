"""Rows that repeat another, case and white space aside, over all rows; across files they are leaks."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

from lorakit import data
from lorakit.checks import Finding, bars, first
from lorakit.example import Example

TITLE = "exact repetitions"
SAMPLED = False


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.prints, self.rows, self.files, self.sets = array("Q"), array("L"), array("L"), array("L")
        self.names: dict[str, int] = {}
        self._pairs: dict[int, int] | None = None

    def _number(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def see(self, example: Example, set: str) -> None:
        self.prints.append(data.fingerprint(example))
        self.rows.append(example.row)
        self.files.append(self._number(example.file))
        self.sets.append(self._number(set))

    @property
    def pairs(self) -> dict[int, int]:
        """Place of a repetition -> place of the first."""
        if self._pairs is None:
            self._pairs = data.duplicates(self.prints)
        return self._pairs

    def _where(self, place: int) -> str:
        return f"{list(self.names)[self.files[place]]}:{self.rows[place]}"

    def _kind(self, again: int, before: int) -> str:
        sets = list(self.names)
        one, other = sets[self.sets[before]], sets[self.sets[again]]
        return f"within {one}" if one == other else f"{one} and {other}"

    def findings(self) -> list[Finding]:
        kinds: dict[str, list[tuple[int, int]]] = {}
        for again, before in self.pairs.items():
            kinds.setdefault(self._kind(again, before), []).append((again, before))
        out = []
        for kind, pairs in kinds.items():
            places = first(f"{self._where(a)} repeats {self._where(b)}" for a, b in pairs)
            inside = kind.startswith("within")
            words = "rows repeat an earlier one; one of each is kept" if inside else (
                f"rows stand in two sets, {kind}: a score on them proves nothing; they are left out of the later")
            out.append(Finding("warning" if inside else "wrong", f"{len(pairs):,} {words}", places))
        return out

    def facts(self) -> dict[str, Any]:
        return dict(Counter(self._kind(a, b) for a, b in self.pairs.items()))

    def draw(self, axes: Any) -> bool:
        if self.pairs:
            bars(axes, {"different": len(self.prints) - len(self.pairs), **self.facts()}, TITLE)
        return bool(self.pairs)
