"""What is looked at in a file before training, one module each.

Contract: `TITLE`; `SAMPLED`, whether a sample of many rows will do; `Check(task, tokenizer, max_length)`, whose
`see(example, set)` is called for every usable row in the order of the files; then `findings()` lists what to know,
`facts()` is plain JSON, and `draw(axes)`, where there is something to see, returns False when there is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SHOWN = 10  # places named in a finding
BLUE, GREEN, YELLOW, RED = "#4c78a8", "#54a24b", "#f2cf5b", "#e45756"


@dataclass
class Finding:
    """`wrong`: rows that cannot be used or prove nothing; `warning`: look at it; `note`: good to know."""

    level: str
    text: str
    rows: list[str] = field(default_factory=list)  # places, the first ten


def bars(axes, counts: dict[str, float], title: str, unit: str = "rows") -> None:
    """Horizontal bars, the largest on top."""
    names = sorted(counts, key=counts.get)[-15:]
    drawn = axes.barh([n if len(n) <= 24 else n[:23] + "…" for n in names], [counts[n] for n in names], color=BLUE)
    axes.bar_label(drawn, [f"{counts[n]:,}" for n in names], padding=3, fontsize=8)
    axes.set(title=title, xlabel=unit)
    axes.margins(x=0.18)
    room = max(0, 5 - len(names)) / 2  # few bars stay slim
    axes.set_ylim(-0.5 - room, len(names) - 0.5 + room)


def first(places: Iterable[str]) -> list[str]:
    """The first ten."""
    return [p for p, _ in zip(places, range(SHOWN), strict=False)]
