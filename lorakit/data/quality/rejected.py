"""Rows that cannot be used, by what is wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from lorakit.data.example import Example, Rejected
from lorakit.data.quality import BLUE, RED, SHOWN, Finding, bars, first, some

TITLE = "usable or not"
SAMPLED = False
DETAIL = re.compile(
    r" \(column \d+\)| at character .*|;.*"
)  # what differs from row to row, and the cure
NUMBER = re.compile(r"(?<!['\w])\d[\d.,]*\b")


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.usable, self.kinds = 0, Counter[str]()

    def see(self, example: Example, set: str) -> None:
        self.usable += 1

    def reject(self, row: Rejected) -> None:
        kind = NUMBER.sub("…", DETAIL.sub("", row.reason))
        self.kinds[kind] += 1

    def findings(self) -> list[Finding]:
        n, kinds = (
            self.kinds.total(),
            first(f"{c:,} × {kind}" for kind, c in self.kinds.most_common()),
        )
        more = f" and {len(self.kinds) - SHOWN} more" if len(self.kinds) > SHOWN else ""
        words = f"{some(n)} cannot be used: {', '.join(kinds)}{more}"
        return [Finding("wrong", words, count=n)] if n else []

    def facts(self) -> dict[str, Any]:
        return {"usable": self.usable, "rejected": dict(self.kinds.most_common())}

    def draw(self, axes: Any) -> int:
        counts = {"usable": self.usable, **self.kinds}
        return (
            bars(axes, counts, TITLE, {k: BLUE if k == "usable" else RED for k in counts})
            if self.kinds
            else 0
        )
