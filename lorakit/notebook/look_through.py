"""The training answers that look wrong, to be looked through in a notebook and in the studio: keep, fix or drop.

    from lorakit.notebook.look_through import LookThrough
    LookThrough("outputs/run")

Each decision is written into the run's `evidence/suspicious.csv` at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipyvuetify
import traitlets

from lorakit.common.errors import LorakitError
from lorakit.results.evidence import suspicious
from lorakit.runs.folder import RunFolder

SHOWN = 20  # rows at a time


class LookThrough(ipyvuetify.VuetifyTemplate):
    """The table of a run, the most suspicious rows first.

    Args:
        path: a run that `lorakit suspicious` has ranked.
        target: the cleaned file that the button writes; else `cleaned.jsonl` in the run's folder.
        cleaned: called with that file when it is written.

    Raises:
        LorakitError: the run has no table.
    """

    template_file = (__file__, "look_through.vue")
    rows: Any = traitlets.List([]).tag(sync=True)  # of dicts, see `vue_turn`
    total = traitlets.Int(0).tag(sync=True)
    start = traitlets.Int(0).tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        path: str | os.PathLike,
        target: Path | None = None,
        cleaned: Callable[[Path], Any] = lambda path: None,
    ):
        super().__init__()
        self.path, self.cleaned = path, cleaned
        self.target = target or RunFolder.of(path) / "cleaned.jsonl"
        self.vue_turn(0)

    def __repr__(self) -> str:
        lines = [f"{self.total} rows to look through"]
        lines += [f"{r['row']}: {r['answer']!r}, the model: {r['own']!r}" for r in self.rows]
        return "\n".join(lines)

    def vue_turn(self, start: int) -> None:
        """Shows the rows from this place on."""
        found = suspicious.table(self.path)
        self.total, self.start = len(found), max(0, min(int(start), len(found) - 1))
        self.rows = [
            {
                "row": line["row"],
                "name": line["row"].replace("\\", "/").rpartition("/")[2],
                "question": line["question"],
                "answer": line["answer"],
                "own": line["model's answer"],
                "decision": line["decision"] or "keep",
            }
            for line in found[self.start : self.start + SHOWN]
        ]

    def vue_decide(self, asked: dict[str, Any]) -> None:
        """A decision about one row, and of `fix` its answer."""
        row, decision, answer = self.rows[int(asked["row"])], asked["decision"], asked.get("answer")
        if decision not in suspicious.DECISIONS:
            return
        suspicious.decide(self.path, row["row"], decision, None if answer is None else str(answer))
        self.vue_turn(self.start)

    def vue_clean(self, _: Any) -> None:
        """Writes the cleaned file, never over another."""
        target = self.target
        number = 1
        while target.exists():
            number += 1
            target = self.target.with_stem(f"{self.target.stem}-{number}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            counts = suspicious.cleaned(self.path, target)
        except (LorakitError, OSError) as error:
            self.message = str(error)
            return
        told = ", ".join(f"{counts[word]} {word}" for word in suspicious.DECISIONS if counts[word])
        self.message = f"{target.name} is written: {told}"
        self.cleaned(target)
