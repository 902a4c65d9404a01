"""The studio: a run from a file to an answer without writing code. A thin view over `desk`; a tab is a file of `tabs/`.

from lorakit.widgets.studio import Studio
Studio(lorakit.Run(data="data/triage.jsonl"))
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipywidgets as widgets

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.notebook.live import EVERY, SHARE
from lorakit.notebook.studio.controller import Desk
from lorakit.notebook.studio.tabs import words
from lorakit.run import Run

PAUSE = 0.4  # seconds without a move until a closer estimate is counted
# Voila writes a cell's tags as classes; what is for runs that nobody looks at is hidden on its page.
STYLE = """<style>
.celltag_headless{display:none}
.lorakit-studio{max-width:72rem;margin:0 auto}
.lorakit-studio .widget-html-content,.lorakit-studio .jupyter-widget-html-content{line-height:1.5;width:100%}
.lorakit-studio .widget-inline-hbox,.lorakit-studio .jupyter-widget-inline-hbox{margin-left:0;margin-right:0}
.lorakit-studio .widget-toggle-buttons,.lorakit-studio .jupyter-widget-toggle-buttons{flex-wrap:wrap}
.lorakit-studio.lorakit-studio.lorakit-studio :focus-visible{outline:2px solid #3b82f6!important;outline-offset:1px}
.lk-said,.lk-good,.lk-error,.lk-quiet{white-space:pre-wrap;overflow-wrap:anywhere;padding:.15rem 0}
.lk-good{border-left:4px solid #15803d;padding-left:.6rem}.lk-error{border-left:4px solid #b91c1c;padding-left:.6rem}
.lk-quiet{opacity:.75}.lk-scroll{overflow-x:auto;max-width:100%}.lk-download{text-decoration:underline}
.lorakit-studio pre{white-space:pre-wrap;overflow-wrap:anywhere;word-break:normal;max-height:24rem;overflow-y:auto}
.lorakit-studio .lk-fold{text-align:left;white-space:normal;height:auto}
.lorakit-studio .mod-success{background:#2e7d32;color:#fff}.lorakit-studio .mod-warning{color:#000}
.lorakit-studio select{--jp-widgets-dropdown-arrow:url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' \
viewBox='0 0 18 18'%3E%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23888' stroke-width='2'/%3E%3C/svg%3E")}
.lk-drop label{display:block;position:relative;padding:1.2rem;text-align:center;border:2px dashed rgba(128,128,128,.7);
border-radius:6px}.lk-drop input{position:absolute;inset:0;width:100%;opacity:0;cursor:pointer}
.lk-drop label:focus-within,.lk-drop label:hover,.lk-drop .lk-over{outline:2px solid #3b82f6;border-color:transparent}
.lorakit-studio:has(.lk-drop) .lk-whole{display:none!important}
.lk-drop progress{width:min(30rem,60%);margin-right:1rem}
.lorakit-studio table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.lorakit-studio caption{text-align:left;opacity:.75}
.lorakit-studio td,.lorakit-studio th{border-bottom:1px solid rgba(128,128,128,.35);padding:.2rem .6rem;text-align:left;
vertical-align:top;max-width:24rem;overflow-wrap:break-word}
@media(max-width:600px){.lorakit-studio td,.lorakit-studio th{min-width:4rem;overflow-wrap:anywhere;padding:.2rem .3rem}
.lorakit-studio td:first-child{overflow-wrap:break-word}.lorakit-studio img{min-width:40rem}
.lorakit-studio [class*=inline-hbox]>[class*=widget-label]{width:7rem!important}}
</style>"""


def paced(look: Callable[[], Any]) -> float:
    """Looks, and says after how many seconds to look again, so that a hundredth of the time goes into it at most."""
    begun = time.thread_time()
    look()
    return max(EVERY, (time.thread_time() - begun) / SHARE)


class Studio:
    """Shown by being the last line of a cell."""

    def __init__(self, run: Run, folders: Sequence[str] = ()):
        self.desk = Desk(run, folders)
        self.looked_at: str | None = next(iter(self.desk.names()), None)
        self.filling = False  # controls are being set, nobody moved them
        self._asked = 0  # estimates asked for so far
        self.message = widgets.HTML()
        modules = sorted(registry.modules("tabs").values(), key=lambda module: module.PLACE)
        self.tabs = {module.TITLE: module.Tab(self) for module in modules}
        self.menu = widgets.ToggleButtons(
            options=list(self.tabs),
            style={"button_width": "auto"},
            tooltips=list(self.tabs),
            layout=widgets.Layout(width="100%"),
        )
        self.menu.observe(lambda change: self._turned(), "value")
        self.page = widgets.VBox([])
        self.box = widgets.VBox([widgets.HTML(STYLE), self.menu, self.message, self.page])
        self.box.add_class("lorakit-studio")
        going = [job["name"] for job in self.desk.jobs() if job["status"] in ("running", "queued")]
        if going:  # started from a page that was closed
            self.looked_at = going[0]
            self.menu.value = "Progress"
        self._turned()
        threading.Thread(target=self._live, daemon=True).start()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    @property
    def tab(self) -> Any:
        return self.tabs[self.menu.value]

    def show(self, title: str) -> None:
        """Turns to a tab."""
        if self.menu.value == title:
            self._turned()
        self.menu.value = title

    def _turned(self) -> None:
        self.page.children, self.message.value = [self.tab.box], ""
        self.tried(self.tab.shown)

    def _live(self) -> None:
        pause = EVERY
        while True:
            time.sleep(pause)
            pause = paced(self._tick)

    def _tick(self) -> None:
        tick = getattr(self.tab, "tick", None)
        if tick:
            with contextlib.suppress(
                Exception
            ):  # a file that is just being replaced; the next second sees it
                tick()

    # What the tabs use

    def say(self, text: str, kind: str = "said") -> None:
        self.message.value = f'<div role="status">{words(text, kind)}</div>'

    def refused(self, error: str) -> None:
        self.say(error, "error")

    def put(self, widget: widgets.HTML, value: str) -> None:
        """Changes what is shown where it changed: nothing is sent for the same."""
        if widget.value != value:
            widget.value = value

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Controls are set by the program meanwhile."""
        before, self.filling = self.filling, True
        try:
            yield
        finally:
            self.filling = before

    def tried(self, call: Callable[[], Any], where: widgets.HTML | None = None) -> Any:
        """What a call returns (True for None); None when it was refused, and the message says why."""
        try:
            found = call()
            return True if found is None else found
        except (LorakitError, OSError) as error:
            if where is None:
                self.refused(str(error))
            else:
                where.value = words(error, "error")
            return None

    def later(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], Any],
        failed: Callable[[str], Any] | None = None,
    ) -> threading.Thread:
        """Does what takes long beside the page, then shows what came of it."""
        failed = failed or self.refused

        def run() -> None:
            try:
                then(work())
            except LorakitError as error:
                failed(str(error))
            except Exception as error:  # nothing that goes wrong may end the page
                failed(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def settings_changed(self) -> None:
        """The settings came from somewhere else than the controls."""
        self.tabs["Configure"].shown()

    def forget_estimates(self) -> None:
        """What is still being counted is not shown."""
        self._asked += 1

    def estimate(self) -> None:
        """Memory and time at once from what is known, and closer when nothing has moved for a moment."""
        self._asked += 1
        asked, run, view = self._asked, self.desk.run, self.tabs["Configure"]
        view.planned(self.desk.estimator.quick(run), counting=True)

        def closer() -> Any:
            time.sleep(PAUSE)
            return self.desk.estimate(run) if asked == self._asked else None

        def came(found: Any) -> None:
            if found and asked == self._asked:
                view.planned(found, counting=False)

        def refused(error: str) -> None:
            if asked == self._asked:
                view.plan.value = words(error, "error")

        self.later(closer, came, refused)
