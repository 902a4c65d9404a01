"""Try: the same question to the base and to the tuned model, side by side."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from lorakit.notebook.studio.tabs import WIDE, button, chooser, layout, line, refill, table, words

TITLE, PLACE = "Try", 6


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        self.menu = chooser(studio)
        self.question = widgets.Textarea(
            description="Question", rows=4, style=WIDE, layout=layout()
        )
        self.answers = widgets.HTML()
        self.box = widgets.VBox(
            [self.menu, self.question, line(button("Ask both", self.ask, "primary")), self.answers]
        )

    def shown(self) -> None:
        refill(self.studio, self.menu)

    def ask(self) -> None:
        name, question = self.menu.value, self.question.value
        self.answers.value = words("both models are loaded and asked …", "quiet")
        self.studio.later(
            lambda: self.desk.ask(name, question),
            lambda found: self.answered(question, found),
            self.failed,
        )

    def answered(self, question: str, found: tuple[str, str]) -> None:
        self.answers.value = table(["the base", "the tuned model"], [found], question[:200])

    def failed(self, error: str) -> None:
        self.answers.value = words(error, "error")
