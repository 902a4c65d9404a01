"""Columns of the usable rows: how many values are there, empty or null; columns that say the same in every row."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lorakit.data import report
from lorakit.data.example import Example
from lorakit.data.quality import BARS, GREEN, RED, YELLOW, Finding, listed

TITLE = "columns"
SAMPLED = False


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.rows = 0
        self.null, self.empty, self.there = (Counter[str]() for _ in range(3))
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
        facts = self.facts()
        gaps = {n: f["empty"] + f["null"] for n, f in facts.items() if f["empty"] + f["null"]}
        same = [n for n in facts if n not in self.varied and self.rows > 1 and n not in gaps]
        parts = {
            f"columns without a value in some of {self.rows:,} rows": [
                f"{n!r} {c:,}" for n, c in sorted(gaps.items(), key=lambda item: -item[1])
            ],
            "columns that say the same in every row": [repr(n) for n in same],
        }
        return [
            Finding("note", f"{words}: {report.listed(names, quoted=False)}")
            for words, names in parts.items()
            if names
        ]

    def facts(self) -> dict[str, Any]:
        return {
            n: {
                "values": self.there[n] - self.null[n] - self.empty[n],
                "empty": self.empty[n],
                "null": self.null[n] + self.rows - self.there[n],
            }
            for n in self.there
        }

    def draw(self, axes: Any) -> int:
        facts = self.facts()
        names, left = [*facts][:BARS][::-1], [0] * min(BARS, len(facts))
        for kind, color in (("values", GREEN), ("empty", YELLOW), ("null", RED)):
            counts = [facts[n][kind] for n in names]
            drawn = axes.barh(range(len(names)), counts, left=left, color=color, label=kind)
            left = [a + b for a, b in zip(left, counts, strict=True)]
        gaps = [self.rows - facts[n]["values"] for n in names]
        axes.bar_label(
            drawn, [f"{gap:,} missing" if gap else "" for gap in gaps], padding=3, fontsize=8
        )
        axes.margins(x=0.25)
        axes.legend(fontsize=8, ncols=3, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.02))
        return listed(
            axes,
            names,
            TITLE + (f", the first {BARS} of {len(facts)}" if len(facts) > BARS else ""),
        )
