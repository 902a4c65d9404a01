"""What the page shows, each part a trait that ipyvuetify keeps in step, and how work beside it is done."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipyvuetify
import traitlets
from ipywidgets import widget_serialization

from lorakit.common.errors import LorakitError
from lorakit.common.quiet import quiet
from lorakit.machine.hardware import place
from lorakit.notebook.live import EVERY, SHARE
from lorakit.notebook.studio import columns, uploads
from lorakit.notebook.studio.controller import Desk
from lorakit.run import Run

STEPS = ("Data", "Columns", "Model", "Settings", "Train", "Result", "Use")
PRESETS = {
    "quick": ("Quick look", "One pass over the rows: does it work at all?", {"epochs": 1}),
    "good": ("Good", "Three passes; right for most data.", {"epochs": 3}),
    "thorough": (
        "Thorough",
        "Six passes with a larger adapter; stops when it no longer gets better.",
        {"epochs": 6, "rank": 32, "alpha": 64, "early_stopping": 3},
    ),
}


def _synced(kind: Callable[..., Any], *default: Any) -> Any:
    return kind(*default).tag(sync=True)


def enable_on_colab() -> None:
    """Colab shows widgets of packages beside ipywidgets only when asked to; does nothing elsewhere."""
    if place() == "colab":
        with contextlib.suppress(ImportError):
            from google.colab import output

            output.enable_custom_widget_manager()


def paced(look: Callable[[], Any]) -> float:
    """Looks, and says after how many seconds to look again, so that a hundredth of the time goes into it at most."""
    began = time.thread_time()
    look()
    return max(EVERY, (time.thread_time() - began) / SHARE)


class Page(ipyvuetify.VuetifyTemplate):
    """State of the page, and threads for what takes long."""

    template_file = (__file__, "studio.vue")
    steps = _synced(traitlets.List, list(STEPS))
    step = _synced(traitlets.Int, 1)
    done = _synced(traitlets.List, [])
    machine = _synced(traitlets.Unicode, "")
    busy = _synced(traitlets.Unicode, "")
    message = _synced(traitlets.Dict, {"text": "", "kind": "info"})
    limit = _synced(traitlets.Int, uploads.LIMIT // 10**6)
    accept = _synced(traitlets.Unicode, ",".join([*uploads.SUFFIXES, ".gz"]))
    acknowledged = _synced(traitlets.Unicode, "")
    files = _synced(traitlets.List, [])
    table = _synced(traitlets.Dict, {})
    roles = _synced(traitlets.List, columns.titles())
    mapping = _synced(traitlets.Dict, {"parts": [], "preview": []})
    models = _synced(traitlets.List, [])
    model = _synced(traitlets.Unicode, "")
    hub = _synced(traitlets.List, [])
    presets = _synced(
        traitlets.List, [{"name": n, "title": t, "text": x} for n, (t, x, _) in PRESETS.items()]
    )
    preset = _synced(traitlets.Unicode, "")
    settings = _synced(traitlets.List, [])
    plan = _synced(traitlets.Dict, {"text": "", "kind": "info"})
    name = _synced(traitlets.Unicode, "")
    run = _synced(traitlets.Dict, {"name": "", "percent": 0})
    runs = _synced(traitlets.List, [])
    looked = _synced(traitlets.Unicode, "")
    result = _synced(traitlets.Dict, {})
    suspects = traitlets.Any(None, allow_none=True).tag(sync=True, **widget_serialization)
    comparison = _synced(traitlets.Dict, {})
    chat = _synced(traitlets.Dict, {"turns": [], "examples": [], "base": False, "system": ""})
    targets = _synced(traitlets.List, [])
    exported = _synced(traitlets.Dict, {})

    def __init__(self, run: Run, folders: Sequence[str] = ()):
        super().__init__()
        quiet()
        self.desk = Desk(run, folders)
        self._working: list[str] = []
        self.targets = self.desk.targets()

    # Work beside the page

    def say(self, text: str, kind: str = "info") -> None:
        """A message above the page: info, success, warning or error. Paths of this server are shortened."""
        for folder in (self.desk.folder / "uploads", self.desk.home):
            text = text.replace(f"{folder}/", "")
        self.message = {"text": text, "kind": kind}

    def tried(self, call: Callable[[], Any]) -> bool:
        """Calls; when that is refused, the message says why."""
        try:
            call()
            return True
        except (LorakitError, OSError) as error:
            self.say(str(error), "error")
        except Exception as error:  # nothing that goes wrong may end the page
            self.say(f"{type(error).__name__}: {error}", "error")
        return False

    def later(self, words: str, work: Callable[[], Any]) -> None:
        """Does what takes long in a thread, with a word about it meanwhile."""

        def run() -> None:
            self._working.append(words)
            self.busy = words
            self.tried(work)
            self._working.remove(words)
            self.busy = self._working[-1] if self._working else ""

        threading.Thread(target=run, daemon=True).start()

    def _live(self) -> None:
        pause = EVERY
        while True:
            time.sleep(pause)
            pause = paced(self._tick)

    def _tick(self) -> None:
        with contextlib.suppress(Exception):  # a file that is just being replaced
            self.tick()

    def tick(self) -> None:
        """What changes by itself: the runs."""
        self.runs = self.desk.jobs()

    def vue_dismiss(self, _: Any) -> None:
        """Closes the message."""
        self.message = {"text": "", "kind": "info"}
