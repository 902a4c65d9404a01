"""Jobs: every run of the folder, what became of it, two and more side by side, and away with one after a question."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from lorakit.notebook.studio.tabs import WIDE, button, layout, line, picture, pre, table, words

TITLE, PLACE = "Jobs", 5


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        self.list = widgets.HTML()
        self.chosen = widgets.SelectMultiple(
            description="Runs", options=[], rows=6, style=WIDE, layout=layout()
        )
        self.words, self.question = widgets.HTML(), widgets.HTML()
        self.picture, scrolled = picture()
        self.sure = line(
            self.question,
            button("Yes, delete", self.delete, "danger"),
            button("No, keep", self.keep),
        )
        self.sure.layout.display = "none"
        self.box = widgets.VBox(
            [
                self.list,
                self.chosen,
                line(
                    button("Show", self.show, help="Show the progress of the run chosen"),
                    button("Compare", self.compare, "primary", "Lay the runs chosen side by side"),
                    button("Delete", self.ask, "", "Delete the runs chosen, after a question"),
                ),
                self.sure,
                self.words,
                scrolled,
            ]
        )

    def shown(self) -> None:
        self.tick()

    def tick(self) -> None:
        found = self.desk.jobs()
        names = [job["name"] for job in found]
        self.studio.put(
            self.list,
            table(
                ["run", "status", "model", "updates", "why"],
                [
                    [job["name"], job["status"], job["model"], job["updates"], job["error"][:200]]
                    for job in found
                ],
            )
            if found
            else words("no run yet", "quiet"),
        )
        if list(self.chosen.options) != names:
            kept = [name for name in self.chosen.value if name in names]
            self.chosen.options = names
            self.chosen.value = kept

    def show(self) -> None:
        if self.chosen.value:
            self.studio.looked_at = self.chosen.value[0]
            self.studio.show("Progress")

    def compare(self) -> None:
        names = list(self.chosen.value)
        self.words.value = words("comparing …", "quiet")
        self.studio.later(lambda: self.desk.compare(names), self.compared, self.failed)

    def compared(self, found: tuple[str, bytes]) -> None:
        self.words.value, self.picture.value = pre(found[0]), found[1]
        self.picture.layout.display = ""

    def failed(self, error: str) -> None:
        self.words.value = words(error, "error")

    def ask(self) -> None:
        if self.chosen.value:
            self.question.value = words(
                f"Delete {', '.join(self.chosen.value)} with all that is in it? It cannot be "
                "brought back.",
                "error",
            )
            self.sure.layout.display = "flex"

    def keep(self) -> None:
        self.sure.layout.display = "none"

    def delete(self) -> None:
        self.keep()
        for name in self.chosen.value:
            self.studio.tried(
                lambda name=name: (self.desk.delete(name), self.studio.say(f"{name} is deleted"))
            )
        self.tick()
