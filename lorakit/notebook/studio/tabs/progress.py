"""Progress: the curve as it grows, figures of the moment, answers to the same prompts, the log."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from lorakit.common.errors import LorakitError
from lorakit.notebook.live import Panel
from lorakit.notebook.studio.tabs import chooser, fold, pre, refill, table, words

TITLE, PLACE = "Progress", 4


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        self.menu = chooser(studio, self.tick)
        self.line, self.curve, self.answers, self.log = (widgets.HTML() for _ in range(4))
        self.panel: Panel | None = None
        self.box = widgets.VBox(
            [
                self.menu,
                self.line,
                self.curve,
                fold("Answers to the same prompts", self.answers),
                fold("The log", self.log),
            ]
        )

    def shown(self) -> None:
        refill(self.studio, self.menu)
        self.tick()

    def tick(self) -> None:
        name = self.menu.value
        if not name:
            self.studio.put(self.line, words("no run yet: start one under Train", "quiet"))
            return
        try:
            job = self.desk.job(name)
            if self.panel is None or self.panel.folder.path != job.folder.path:
                self.panel = Panel(job.folder)
            updates, validations = self.panel.tail.read()
            said = self.panel.line(job.status, updates, validations)
            error = str(job.folder.record.get("error") or "")
            self.studio.put(
                self.line,
                words(said) + words(error, "error" if job.status == "failed" else "quiet"),
            )
            self.studio.put(self.curve, self.panel.picture(said) if updates else "")
            self.studio.put(
                self.log, pre(job.log(40)) or words("none: it was not started from here", "quiet")
            )
            self.studio.put(self.answers, self.samples(name))
        except LorakitError as error:
            self.studio.put(self.line, words(error, "error"))

    def samples(self, name: str) -> str:
        """A row per prompt, a column per moment: how the answers change."""
        found = self.desk.samples(name)[-60:]
        when = list(dict.fromkeys(row["update"] for row in found))
        by = {(row["prompt"], row["update"]): row["answer"] for row in found}
        prompts = list(dict.fromkeys(row["prompt"] for row in found))
        heads = [f"update {w}" if isinstance(w, int) else w for w in when]
        return (
            table(
                ["prompt", *heads],
                [[p[:200], *(by.get((p, w), "") for w in when)] for p in prompts],
            )
            if found
            else words("none yet", "quiet")
        )
