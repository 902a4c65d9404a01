"""Tokens per row for the chosen model: what `max_length` would cut, and rows with nothing left to train."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorakit.checks import BLUE, RED, Finding, first
from lorakit.errors import BadRow, LorakitError
from lorakit.example import Example

TITLE = "tokens per row"
SAMPLED = True


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.task, self.tokenizer, self.max_length = task, tokenizer, max_length
        self.lengths: list[int] = []
        self.trained: list[int] = []
        self.cut: list[int] = []
        self.bad: list[tuple[str, str]] = []
        self.refused = ""

    def see(self, example: Example, set: str) -> None:
        if self.refused or self.task is None:
            return
        try:
            rows = self.task.encode(example, self.tokenizer, self.max_length)
        except BadRow as error:
            self.bad.append((example.where, str(error)))
        except LorakitError as error:  # the template's fault, not the row's
            self.refused = str(error)
        else:
            self.lengths += [len(row["ids"]) + row["cut"] for row in rows]
            self.trained += [sum(row["targets"]) for row in rows]
            self.cut += [row["cut"] for row in rows]

    def findings(self) -> list[Finding]:
        out = []
        if self.refused:
            out.append(Finding("wrong", self.refused))
        if self.bad:
            out.append(Finding("wrong", f"{len(self.bad):,} rows have nothing to train",
                               first(f"{where}: {why}" for where, why in self.bad)))
        cut = np.asarray(self.cut)
        if cut.any():
            share = cut.sum() / sum(self.lengths)
            out.append(Finding("warning", f"max_length={self.max_length} cuts {np.count_nonzero(cut):,} of "
                                          f"{len(cut):,} rows, {cut.sum():,} tokens ({share:.1%})"))
        if self.lengths:
            half, most = np.percentile(self.lengths, (50, 95))
            out.append(Finding("note", f"tokens per row: half have at most {half:.0f}, 95 % at most {most:.0f}, the "
                                       f"longest {max(self.lengths)}; {sum(self.trained):,} are trained"))
        return out

    def facts(self) -> dict[str, Any]:
        if not self.lengths:
            return {"nothing_to_train": len(self.bad)}
        return {"rows": len(self.lengths), "tokens": sum(self.lengths), "trained": sum(self.trained),
                "longest": max(self.lengths), "median": float(np.median(self.lengths)), "max_length": self.max_length,
                "cut_rows": int(np.count_nonzero(self.cut)), "cut_tokens": sum(self.cut),
                "nothing_to_train": len(self.bad)}

    def draw(self, axes: Any) -> bool:
        if not self.lengths:
            return False
        axes.hist(self.lengths, bins=min(40, max(5, len(set(self.lengths)))), color=BLUE)
        if self.max_length <= 1.5 * max(self.lengths):
            axes.axvline(self.max_length, color=RED, linestyle="--", label=f"max_length {self.max_length}")
            axes.legend(frameon=False, fontsize=8)
        axes.set(title=TITLE, xlabel="tokens", ylabel="rows")
        return True
