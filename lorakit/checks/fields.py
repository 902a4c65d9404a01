"""Columns of the file: how many values are there, empty or null, and columns that say the same in every row."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lorakit.checks import GREEN, RED, YELLOW, Finding
from lorakit.example import Example

TITLE = "columns"
SAMPLED = False


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.rows, self.null, self.empty, self.there = 0, Counter(), Counter(), Counter()
        self.only: dict[str, Any] = {}  # the one value of a column, while it is one
        self.varied: set[str] = set()

    def see(self, example: Example, set: str) -> None:
        self.rows += 1
        for name, value in example.fields["columns"].items():
            self.there[name] += 1
            if value is None:
                self.null[name] += 1
            elif value == "" or (isinstance(value, str) and not value.strip()):
                self.empty[name] += 1
            if name not in self.varied and self.only.setdefault(name, value) != value:
                self.varied.add(name)

    def findings(self) -> list[Finding]:
        out = []
        for name in self.there:
            missing = self.rows - self.there[name] + self.null[name] + self.empty[name]
            if missing:
                out.append(Finding("note", f"'{name}' has no value in {missing:,} of {self.rows:,} rows"))
        same = [n for n in self.there if n not in self.varied and self.rows > 1 and not self.null[n] + self.empty[n]]
        if same:
            out.append(Finding("note", "the same in every row: " + ", ".join(f"'{n}'" for n in same)))
        return out

    def facts(self) -> dict[str, Any]:
        return {n: {"values": self.there[n] - self.null[n] - self.empty[n], "empty": self.empty[n],
                    "null": self.null[n] + self.rows - self.there[n]} for n in self.there}

    def draw(self, axes: Any) -> bool:
        facts = self.facts()
        names, left = list(facts)[:15][::-1], [0] * min(15, len(facts))
        for kind, color in (("values", GREEN), ("empty", YELLOW), ("null", RED)):
            counts = [facts[n][kind] for n in names]
            axes.barh(names, counts, left=left, color=color, label=kind)
            left = [a + b for a, b in zip(left, counts, strict=True)]
        axes.legend(fontsize=8, loc="lower right")
        room = max(0, 5 - len(names)) / 2
        axes.set_ylim(-0.5 - room, len(names) - 0.5 + room)
        axes.set(title=TITLE, xlabel="rows")
        return True
