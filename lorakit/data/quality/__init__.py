"""What is looked at in a file before training, one module each.

Contract: `TITLE`; `SAMPLED`, whether a sample of many rows will do; `Check(encode, max_length)`, whose
`see(example, set)` is called for every usable row in the order of the files, and `reject(row)`, where there is one, for
every other; then `findings()` lists what to know, `facts()` is plain JSON, and `draw(axes)` returns the height of the
picture in bars, 0 when there is nothing to see. `encode(example, max_length)` gives the rows that the run would train
on, as a task does; it is None where no model is named that could.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

SHOWN = 5  # places named in a finding
BARS, NAME = 15, 30  # bars in a picture; characters of a bar's name
LEVELS = ("wrong", "warning", "note")
BLUE, GREEN, YELLOW, RED = "#4c78a8", "#54a24b", "#f2cf5b", "#e45756"

# What a chat template may not write -> what is said of it, with the cure.
LOST = {
    "reasoning": "the reasoning is not in what is trained, as this chat template leaves it out; set reasoning: keep to "
    "write it in <think> marks, reasoning: drop to leave it out on purpose, or use a model whose template writes it",
    "doubled": "the reasoning is written twice, inside the answer and by the chat template; remove it from one of them",
    "answer": "the chat template changes the words of the answer; use a model whose template keeps them",
    "indentation": "the chat template cuts white space at the start of the answer (indented code, say)",
    "system": "the chat template leaves the system turn out of the prompt",
    "history": "the chat template changes or leaves out an earlier turn",
    "prompt": "a token joins the end of the prompt with the answer, so that training and generation ask differently",
    "ended": "the words begin or end with a control token such as <s> or </s>, which is left out: the chat template "
    "writes its own",
    "control": "the words hold control tokens of the model, which are encoded as plain text",
}


@dataclass
class Finding:
    """`wrong`: rows that cannot be used or prove nothing; `warning`: look at it; `note`: good to know."""

    level: str
    text: str
    rows: list[str] = field(default_factory=list)  # places, the first ten
    count: int = 0  # rows that it is about, 0 when about the whole


def some(n: int, noun: str = "row") -> str:
    """`1 row`, `2,000 rows`, `3 classes`"""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"


def first(places: Iterable[str]) -> list[str]:
    """The first five."""
    return list(islice(places, SHOWN))


def repetitions(
    kinds: Mapping[tuple[str, str], list[str]], what: str, inside: str
) -> list[Finding]:
    """Findings from (set of a row, set of the row it repeats) -> the places of such rows. In two sets it is a leak."""
    out = []
    for (left, kept), places in kinds.items():
        words = (
            f"{some(len(places))} {inside.format(left)}"
            if left == kept
            else (
                f"{some(len(places))} left out of {left} as {what} of rows in {kept}; a score on "
                "rows that were trained on proves nothing"
            )
        )
        out.append(
            Finding("warning" if left == kept else "wrong", words, first(places), len(places))
        )
    return out


def draw_repetitions(
    axes: Any, kinds: Mapping[tuple[str, str], list[str]], total: int, title: str
) -> int:
    """How many rows repeat none, how many one of their set (yellow), how many one of another (red)."""
    named = {
        pair: f"again in {pair[0]}" if pair[0] == pair[1] else f"in {pair[0]} and in {pair[1]}"
        for pair in kinds
    }
    counts = {
        "different": total - sum(map(len, kinds.values())),
        **{named[p]: len(rows) for p, rows in kinds.items()},
    }
    colors = {"different": BLUE, **{named[p]: YELLOW if p[0] == p[1] else RED for p in kinds}}
    return bars(axes, counts, title, colors) if kinds else 0


def label(name: str) -> str:
    """A name of the user's as matplotlib can write it: short, printable, no formula."""
    short = name if len(name) <= NAME else name[: NAME - 1] + "…"
    return "".join(c if c.isprintable() else "�" for c in short).replace("$", r"\$")


def bars(
    axes: Any, counts: Mapping[str, int], title: str, color: str | Mapping[str, str] = BLUE
) -> int:
    """Horizontal bars, the largest on top; `color` is one for all, or one for each name. Returns how many there are."""
    names = sorted(counts, key=lambda name: counts[name])[-BARS:]
    colors = [color[n] for n in names] if isinstance(color, Mapping) else color
    drawn = axes.barh(range(len(names)), [counts[n] for n in names], color=colors)
    axes.bar_label(drawn, [f"{counts[n]:,}" for n in names], padding=3, fontsize=8)
    axes.margins(x=0.18)
    rest = f", the largest {BARS} of {len(counts)}" if len(counts) > BARS else ""
    return listed(axes, names, f"{title}, rows{rest}")


def listed(axes: Any, names: list[str], title: str) -> int:
    """Names beside the bars; figures stand at their ends, so that no axis is needed."""
    axes.set_yticks(range(len(names)), [label(n) for n in names])
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    axes.set_title(title, loc="left", fontsize=10)
    return len(names)
