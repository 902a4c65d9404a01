"""A curve as SVG: drawn in a millisecond, in the colours of the page around it, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from lorakit.results.plots import BLUE, ORANGE, smooth, span

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 250, 54, 34, 24, 12
NARROW = "<style>@media(max-width:600px){.lk-curve{font-size:17px!important}}</style>"  # drawn half as large
POINTS = 300  # at most so many are drawn of a line


def svg(
    updates: Sequence[dict],
    validations: Sequence[dict],
    planned: int | None = None,
    words: str = "",
) -> str:
    """The losses of training (raw and smoothed) and of validation rows over the updates; `words` are read aloud."""
    raw = thin([(u["update"], u["loss"]) for u in updates])
    over = max(1.0, span(len(updates)) * len(raw) / max(len(updates), 1))
    even = list(zip([x for x, _ in raw], smooth([y for _, y in raw], over), strict=True))
    seen = thin([(v["update"], v["validation_loss"]) for v in validations])
    levels = [y for _, y in [*raw, *seen] if math.isfinite(y)]
    smoothed = [y for _, y in even if y > 0]
    done = max([1, *(x for x, _ in raw), *(x for x, _ in seen)])
    frame = Frame(
        max(done, min(planned or 1, 3 * done)),
        levels,
        log=bool(smoothed) and min(levels) > 0 and max(smoothed) > 20 * min(smoothed),
    )
    parts = [
        *frame.grid(),
        frame.line(raw, BLUE, "1", ' opacity=".35"'),
        frame.line(even, BLUE, "2"),
        frame.line(seen, ORANGE, "1.5"),
        *(frame.dot(point, ORANGE) for point in seen),
        legend(LEFT + 8, BLUE, "training rows"),
        legend(LEFT + 150, ORANGE, "validation rows") if seen else "",
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(words or "losses")}" '
        'class="lk-curve" style="width:100%;max-width:900px;height:auto;overflow:visible;'
        f'font:12px system-ui,sans-serif" fill="currentColor">{NARROW}' + "".join(parts) + "</svg>"
    )


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite ones; of many the means of as many neighbours as it takes."""
    points = [p for p in points if math.isfinite(p[1])]
    each = -(-len(points) // POINTS)
    if each <= 1:
        return points
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def legend(x: float, colour: str, words: str) -> str:
    return (
        f'<path d="M{x} 12h18" stroke="{colour}" stroke-width="3"/>'
        f'<text x="{x + 24}" y="16">{words}</text>'
    )


def round_numbers(end: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers from 0 to `end`: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(end / count)) if end > 0 else 1.0
    step = next(k * power for k in (1, 2, 5, 10) if end <= k * power * count)
    step = max(step, 1.0) if whole else step
    return [step * i for i in range(int(end / step + 1e-9) + 1)]


def logarithmic(low: float, high: float) -> list[float]:
    """Round levels between exp(low) and exp(high): 1, 2 and 5 times powers of ten, or the powers alone when many."""
    powers = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    digits = (1, 2, 5) if len(powers) < 4 else (1,)
    return [k * 10.0**p for p in powers for k in digits if low <= math.log(k * 10.0**p) <= high]


class Frame:
    """Where values lie in the picture."""

    def __init__(self, last: float, levels: list[float], log: bool):
        self.last, self.log = max(last, 1), log
        low, high = (min(levels), max(levels)) if levels else (0.0, 1.0)
        self.low, self.high = (math.log(low), math.log(high)) if log else (0.0, 1.05 * high or 1.0)
        self.high = self.high if self.high > self.low else self.low + 1

    def x(self, update: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * update / self.last

    def y(self, level: float) -> float:
        at = (math.log(max(level, 1e-9)) if self.log else level) - self.low
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * at / (self.high - self.low)

    def grid(self) -> list[str]:
        """Lines at round losses, numbers at round updates."""
        levels = logarithmic(self.low, self.high) if self.log else round_numbers(self.high, 5)
        out = []
        for level in levels:
            y = self.y(level)
            out.append(
                f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" opacity=".15"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level:.3g}</text>'
            )
        for update in round_numbers(self.last, 5, whole=True):
            anchor = "end" if self.x(update) > WIDTH - RIGHT - 20 else "middle"
            out.append(
                f'<text x="{self.x(update):.1f}" y="{HEIGHT - 16}" text-anchor="{anchor}">{update:,.0f}</text>'
            )
        return [
            *out,
            f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 2}" text-anchor="middle">update</text>',
        ]

    def line(
        self, points: list[tuple[float, float]], colour: str, width: str, more: str = ""
    ) -> str:
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>'

    def dot(self, point: tuple[float, float], colour: str) -> str:
        return f'<circle cx="{self.x(point[0]):.1f}" cy="{self.y(point[1]):.1f}" r="3" fill="{colour}"/>'
