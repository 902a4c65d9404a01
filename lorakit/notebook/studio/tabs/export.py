"""Export: a finished run in the form that another tool wants, with its size and a way to take it along."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from lorakit.notebook.studio.controller import EMBEDDED, size
from lorakit.notebook.studio.tabs import WIDE, button, chooser, layout, line, refill, words

TITLE, PLACE = "Export", 7


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        self.menu = chooser(studio)
        self.target = widgets.Dropdown(
            description="As", options=self.desk.targets(), style=WIDE, layout=layout()
        )
        self.made = widgets.HTML()
        self.box = widgets.VBox(
            [self.menu, self.target, line(button("Export", self.export, "primary")), self.made]
        )

    def shown(self) -> None:
        refill(self.studio, self.menu)

    def export(self) -> None:
        name, target = self.menu.value, self.target.value
        self.made.value = words("writing, and reading back what was written …", "quiet")
        self.studio.later(lambda: self.exported(name, target), self.done, self.failed)

    def exported(self, name: str, target: str) -> tuple[Path, Path]:
        path = self.desk.export(name, target)
        return path, self.desk.packed(path)

    def done(self, found: tuple[Path, Path]) -> None:
        path, packed = found
        self.made.value = words(f"{path}: {size(path) / 1e6:,.1f} MB", "good") + link(packed)

    def failed(self, error: str) -> None:
        self.made.value = words(error, "error")


def link(file: Path) -> str:
    """A link that holds the file itself: it works wherever the page is shown, and needs no server for files."""
    if size(file) > EMBEDDED:
        return words(
            f"{file} is too large to travel in this page; take it from the file browser", "quiet"
        )
    content = base64.b64encode(file.read_bytes()).decode()
    name = html.escape(file.name, quote=True)
    return (
        f'<a class="lk-download" download="{name}" href="data:application/octet-stream;base64,{content}">Download '
        f"{name} ({size(file) / 1e6:,.1f} MB)</a>"
    )
