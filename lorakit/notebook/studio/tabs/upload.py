"""Upload: a file from the browser or from this machine, what is found in it, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as widgets

from lorakit.notebook.studio import uploads
from lorakit.notebook.studio.tabs import WIDE, button, layout, line, picture, pre, table, words

try:
    from lorakit.notebook.studio.drop import Drop
except ModuleNotFoundError:  # anywidget is not installed: the button alone
    Drop = None

TITLE, PLACE = "Upload", 1
ROLES = {
    "found by itself": (),
    "question and answer": ("prompt", "answer"),
    "text and label": ("text", "label"),
    "plain text": ("text",),
}


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        accept = ",".join([*uploads.SUFFIXES, ".gz"])
        self.upload = widgets.FileUpload(
            accept=accept,
            multiple=True,
            description="Upload a file",
            layout=widgets.Layout(width="auto"),
        )
        self.upload.observe(self.received, "value")
        self.zone = (
            [Drop(self.begin, self.came, self.studio.refused, accept=accept)] if Drop else []
        )
        self.path = widgets.Combobox(
            description="Or a path",
            placeholder="data/rows.csv, owner/name of the hub",
            ensure_option=False,
            continuous_update=False,
            style=WIDE,
            layout=layout(),
        )
        self.role = widgets.Dropdown(
            description="Columns", options=list(ROLES), style=WIDE, layout=layout()
        )
        self.parts = [
            widgets.Combobox(
                description=name,
                ensure_option=False,
                continuous_update=False,
                style=WIDE,
                layout=layout(display="none"),
            )
            for name in ("", "")
        ]
        self.role.observe(self.roles, "value")
        self.found = widgets.HTML()
        self.rows = widgets.HTML()
        self.picture, scrolled = picture()
        self.leave = button(
            "Leave unusable rows out",
            self.left_out,
            help="Writes a copy without them, beside the uploads; the file itself stays",
        )
        limit = f"CSV, TSV, JSON, JSON Lines, text, Parquet, each also as .gz; at most {uploads.LIMIT / 1e6:.0f} MB."
        small = (
            "A file sent by this button travels in one message, and Jupyter takes 10 MB; name the path of a "
            "larger one, or install anywidget."
        )
        whole = line(self.upload, widgets.HTML(words(small, "quiet")))
        whole.add_class("lk-whole")  # a page that shows the zone hides it
        self.box = widgets.VBox(
            [
                *self.zone,
                whole,
                widgets.HTML(words(limit, "quiet")),
                line(self.path, button("Use this file", self.named)),
                self.role,
                *self.parts,
                line(button("Check", self.check, "primary"), self.leave),
                self.found,
                self.rows,
                scrolled,
            ]
        )

    def shown(self) -> None:
        self.path.options = self.desk.files()
        self.path.value = self.desk.run.data

    def received(self, change: dict) -> None:
        """Each file of an upload; ipywidgets 7 gives a dict by name, 8 a tuple."""
        value = change["new"]
        files = (
            [(name, f["content"], f["metadata"].get("size")) for name, f in value.items()]
            if isinstance(value, dict)
            else [(f["name"], f["content"], f.get("size")) for f in value]
        )
        for file in files:
            if self.studio.tried(lambda file=file: self.desk.receive(*file)):
                self.arrived()

    def begin(self, name: str, size: int) -> uploads.Incoming:
        found = self.desk.incoming(name, size)
        self.studio.say(f"{name} is on its way …", "quiet")
        return found

    def came(self, incoming: uploads.Incoming) -> None:
        """All pieces of a file are there; looking into it may take long."""
        self.studio.say(f"{incoming.name} is being looked at …", "quiet")
        self.studio.later(lambda: self.desk.keep(incoming), lambda _: self.arrived())

    def arrived(self) -> None:
        self.studio.say(f"{Path(self.desk.run.data).name} is the data of the next run", "good")
        self.shown()
        self.forget()

    def named(self) -> None:
        if self.studio.tried(
            lambda: self.desk.change(data=self.path.value, columns=None, format=None, task=None)
        ):
            self.arrived()

    def forget(self) -> None:
        """What was found in another file."""
        self.found.value = self.rows.value = ""
        self.picture.layout.display = "none"
        self.desk.estimator.lengths = None
        self.role.value = next(iter(ROLES))
        self.check()

    def roles(self, change: dict) -> None:
        names = ROLES[change["new"]]
        for part, name in zip(self.parts, [*names, "", ""]):
            part.description, part.layout.display, part.value = name, "" if name else "none", ""
            part.placeholder = "a column, or text with {columns} in braces"

    def check(self) -> None:
        names = ROLES[self.role.value]
        columns = {name: part.value for name, part in zip(names, self.parts) if part.value} or None
        if self.studio.tried(lambda: self.desk.change(columns=columns)):
            self.head()
            self.found.value = words("reading …", "quiet")
            run = self.desk.run
            self.studio.later(
                self.desk.check,
                lambda found: self.checked(found) if self.desk.run == run else None,
                self.failed,
            )

    def head(self) -> None:
        """The first rows, also of a file that cannot be used yet: its columns are needed to say what they are."""
        found = self.studio.tried(self.desk.head)
        if found:
            columns, rows = found
            self.rows.value = table(
                columns, rows, f"the first rows of {Path(self.desk.run.data).name}"
            )
            for part in self.parts:
                part.options = columns

    def failed(self, error: str) -> None:
        self.found.value = words(error, "error")

    def checked(self, found: Any) -> None:
        lines = found.lines()
        bad = [[r.where, r.reason] for r in found.report.rejected[:20]]
        left = table(
            ["row", "why it cannot be used"], bad, f"{len(found.report.rejected)} rows are left out"
        )
        self.found.value = (
            words(lines[0], "good" if found.usable else "error")
            + pre("\n".join(lines[1:]))
            + (left if bad else "")
        )
        self.picture.value = found.picture()._repr_png_()
        self.picture.layout.display = ""
        self.studio.settings_changed()

    def left_out(self) -> None:
        self.studio.later(self.desk.leave_out, lambda _: (self.shown(), self.forget()), self.failed)
