"""Train: start, stop, resume. What trains does so in a process of its own and needs no page."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from lorakit.notebook.studio.tabs import button, line, table, words

TITLE, PLACE = "Train", 3


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        self.summary = widgets.HTML()
        self.state = widgets.HTML()
        hint = (
            "A run goes on when this page is closed, and is found again under Jobs. Of several each waits for a "
            "card of its own. Stopping keeps a checkpoint; resuming goes on from there."
        )
        self.box = widgets.VBox(
            [
                self.summary,
                line(
                    button("Start", self.start, "success", "Start a run with these settings"),
                    button("Stop", self.stop, "warning", "Stop the run below, with a checkpoint"),
                    button("Resume", self.resume, "", "Go on with the run below"),
                ),
                self.state,
                widgets.HTML(words(hint, "quiet")),
            ]
        )

    def shown(self) -> None:
        given = self.desk.run.given()
        self.summary.value = table(["setting", "value"], given.items(), "the next run")
        self.tick()

    def tick(self) -> None:
        name = self.studio.looked_at
        found = next(
            (job for job in self.desk.jobs() if job["name"] == name),
            {"status": "no run yet", "error": ""},
        )
        text = ": ".join(filter(None, (name, found["status"], found["error"])))
        self.studio.put(
            self.state, words(text, "error" if found["status"] in ("failed", "damaged") else "said")
        )

    def start(self) -> None:
        self.studio.say("starting …", "quiet")
        self.studio.later(self.desk.start, self.started)

    def started(self, job: Any) -> None:
        self.studio.looked_at = job.folder.path.name
        self.studio.show("Progress")

    def stop(self) -> None:
        if name := self.studio.looked_at:
            self.studio.say(
                f"stopping {name}: the update in progress ends, then a checkpoint is written …",
                "quiet",
            )
            self.studio.later(
                lambda: self.desk.job(name).stop(),
                lambda job: self.studio.say(
                    f"{name} is {'still ' if job.running else ''}{job.status}"
                ),
            )

    def resume(self) -> None:
        if name := self.studio.looked_at:
            self.studio.later(lambda: self.desk.resume(name), self.started)
