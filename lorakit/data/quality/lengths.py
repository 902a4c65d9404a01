"""Tokens per row for the chosen model: what `max_length` would cut, and rows with nothing left to train."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example
from lorakit.data.quality import BLUE, LOST, RED, Finding, first, some
from lorakit.data.report import LISTED

TITLE = "tokens per row"
SAMPLED = True
BINS = 40
LONG = "no answer token within max_length"
HIGH = 6  # of the picture, in bars
SKEWED = 12  # a longest row of so many medians is drawn on a log scale


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.encode, self.max_length = encode, max_length
        self.examples = 0
        self.lengths: list[int] = []  # of the rows that the examples give, uncut
        self.trained: list[int] = []
        self.cut: list[int] = []
        self.bad: list[tuple[str, str]] = []
        self.lost: list[int] = []  # lengths of the rows with nothing to train
        self.refused = ""
        self.unwritten: dict[str, list[str]] = {}  # what the chat template does not write -> rows

    def see(self, example: Example, set: str) -> None:
        if self.refused or self.encode is None:
            return
        self.examples += 1
        try:
            rows = self.encode(example, self.max_length)
        except BadRow as error:
            self.bad.append((example.where, str(error)))
            self.lost += self._whole(example)
        except LorakitError as error:  # the template's fault, not the row's
            self.refused = str(error)
        else:
            self.lengths += [len(row["ids"]) + row["cut"] for row in rows]
            self.trained += [sum(row.get("targets", ())) for row in rows]
            self.cut += [row["cut"] for row in rows]
            for key in {k for row in rows for k in row.get("lost", ())}:
                self.unwritten.setdefault(key, []).append(example.where)

    def _whole(self, example: Example) -> list[int]:
        """What the row would take, when its length is what is wrong with it."""
        try:
            return [len(row["ids"]) for row in self.encode(example, sys.maxsize)]
        except BadRow:
            return []

    def findings(self) -> list[Finding]:
        out = []
        if self.refused:
            out.append(Finding("wrong", self.refused))
        kinds: dict[str, list[str]] = {}
        for where, why in self.bad:
            kinds.setdefault(LONG if why.startswith(LONG) else why, []).append(f"{where}: {why}")
        for why, places in [*kinds.items()][:LISTED]:
            words = (
                f"nothing is left to train; raise max_length={self.max_length} or shorten the question"
                if why == LONG
                else why
            )
            out.append(
                Finding(
                    "wrong",
                    f"{some(len(places))} left out, because {words}",
                    first(places),
                    len(places),
                )
            )
        for key, places in self.unwritten.items():
            out.append(
                Finding("warning", f"{some(len(places))}: {LOST[key]}", first(places), len(places))
            )
        rows = np.count_nonzero(self.cut)
        if rows:
            share = sum(self.cut) / sum(self.lengths)
            out.append(
                Finding(
                    "warning",
                    f"max_length={self.max_length} cuts {rows:,} of {some(len(self.cut))}, "
                    f"{some(sum(self.cut), 'token')} ({share:.1%}); such an answer is trained "
                    "without its end",
                    count=int(rows),
                )
            )
        if any(self.lengths):
            half, most = np.percentile(self.lengths, (50, 95))
            pieces = (
                f"; {some(self.examples, 'example')} became {some(len(self.lengths))}"
                if len(self.lengths) > self.examples
                else ""
            )
            out.append(
                Finding(
                    "note",
                    f"tokens per row: half have at most {half:.0f}, 95 % at most {most:.0f}, the "
                    f"longest {max(self.lengths):,}; {sum(self.trained):,} are trained{pieces}",
                )
            )
        return out

    def facts(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "max_length": self.max_length,
            "examples": self.examples,
            "rows": len(self.lengths),
            "tokens": sum(self.lengths),
            "trained": sum(self.trained),
            "cut_rows": int(np.count_nonzero(self.cut)),
            "cut_tokens": sum(self.cut),
            "nothing_to_train": len(self.bad),
        }
        if self.lengths:
            out |= {"longest": max(self.lengths), "median": float(np.median(self.lengths))}
        return out

    def draw(self, axes: Any) -> int:
        every = self.lengths + self.lost
        if not any(every):  # pictures alone
            return 0
        low, high = min(every), max(every)
        log = high > SKEWED * np.median(every)
        bins = (np.geomspace if log else np.linspace)(low, high + 1, min(BINS, high - low + 1) + 1)
        kinds = {"used": (self.lengths, BLUE), "nothing to train": (self.lost, RED)}
        drawn = {name: of for name, of in kinds.items() if of[0]}
        axes.hist(
            [of for of, _ in drawn.values()],
            bins=bins,
            stacked=True,
            color=[c for _, c in drawn.values()],
            label=["_" if name == "used" else name for name in drawn],
        )
        if self.max_length <= 1.5 * high:
            axes.axvline(
                self.max_length, color=RED, linestyle="--", label=f"max_length {self.max_length:,}"
            )
        if log:
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_title(TITLE, loc="left", fontsize=10)
        axes.set(ylabel="rows")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(
                fontsize=8,
                ncols=2,
                columnspacing=1,
                handlelength=1.4,
                borderaxespad=0,
                frameon=False,
                loc="lower right",
                bbox_to_anchor=(1, 1),
            )
        return HIGH
