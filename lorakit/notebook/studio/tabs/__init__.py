"""The studio's tabs, a file each: `TITLE`, `PLACE` (its number from the left), and `Tab(studio)` with `box`, a widget;
`shown()`, called when somebody turns to it; and where it is live `tick()`, called every second as long as it is shown.

What users write or files hold is shown through `words`, `table` and `pre` alone: they escape it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets as widgets

WIDE = {"description_width": "9rem"}


def layout(**more: Any) -> widgets.Layout:
    return widgets.Layout(**{"width": "100%", "max_width": "44rem", **more})


def words(text: str, kind: str = "said") -> str:
    """A paragraph; kinds: said, error, good, quiet."""
    return f'<div class="lk-{kind}">{html.escape(str(text))}</div>' if text else ""


def pre(text: str) -> str:
    return f"<pre>{html.escape(str(text))}</pre>" if text else ""


def table(columns: Iterable[Any], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    head = "".join(f'<th scope="col">{html.escape(str(c))}</th>' for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="lk-scroll" tabindex="0"><table>{title}<tr>{head}</tr>{body}</table></div>'


def button(title: str, call: Any, style: str = "", help: str = "") -> widgets.Button:
    made = widgets.Button(
        description=title,
        button_style=style,
        tooltip=help or title,
        layout=widgets.Layout(width="auto", min_width="8rem"),
    )
    made.on_click(lambda _: call())
    return made


def fold(title: str, *children: widgets.Widget) -> widgets.VBox:
    """What is shown once its title is pressed; by keyboard too, which the headers of an `Accordion` do not take."""
    body = widgets.VBox(children, layout=widgets.Layout(display="none", width="100%"))
    head = widgets.ToggleButton(
        description=title, tooltip=title, icon="caret-right", layout=widgets.Layout(width="100%")
    )
    head.add_class("lk-fold")

    def turned(change: dict) -> None:
        body.layout.display = "" if change["new"] else "none"
        head.icon = "caret-down" if change["new"] else "caret-right"

    head.observe(turned, "value")
    return widgets.VBox([head, body])


def picture() -> tuple[widgets.Image, widgets.Box]:
    """An image, and the box that it is scrolled in where the page is narrower."""
    made = widgets.Image(format="png", layout=widgets.Layout(display="none", max_width="100%"))
    box = widgets.Box([made], layout=widgets.Layout(overflow="auto", width="100%"))
    box.add_class("lk-scroll")
    return made, box


def line(*children: widgets.Widget) -> widgets.Box:
    """Side by side where there is room, below each other where there is none."""
    return widgets.Box(
        children,
        layout=widgets.Layout(
            display="flex", flex_flow="row wrap", width="100%", align_items="center"
        ),
    )


def chooser(studio: Any, call: Any = None) -> widgets.Dropdown:
    """A menu of the runs that follows the run looked at."""
    made = widgets.Dropdown(description="Run", options=[], style=WIDE, layout=layout())

    def changed(change: dict) -> None:
        if change["new"] and not studio.filling:
            studio.looked_at = change["new"]
            if call:
                call()

    made.observe(changed, "value")
    return made


def refill(studio: Any, menu: widgets.Dropdown) -> None:
    names = studio.desk.names()
    with studio.quiet():
        if list(menu.options) != names:
            menu.options = names
        menu.value = studio.looked_at if studio.looked_at in names else names[0] if names else None
    studio.looked_at = menu.value
