"""The Python half of a zone for files (drop.js): they come in pieces and go to the disk, a piece at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from lorakit.common.errors import LorakitError
from lorakit.notebook.studio.uploads import Incoming

AT_ONCE = 8  # uploads that may be on their way
IDLE = 600  # seconds without a piece, after which an upload is given up: its page is gone
ENDED = {"stop": "cancelled", "unread": "the browser cannot read it; is it a folder, or gone?"}


class Drop(anywidget.AnyWidget):
    """`begin(name, size)` opens an upload, `came(incoming)` takes one whose pieces are all there, `refused(words)` says
    why not."""

    _esm = Path(__file__).with_name("drop.js").read_text(encoding="utf-8")
    accept = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        begin: Callable[[str, int], Incoming],
        came: Callable[[Incoming], Any],
        refused: Callable[[str], Any],
        **more: Any,
    ):
        super().__init__(**more)
        self._begin, self._came, self._refused = begin, came, refused
        self._open: dict[str, tuple[Incoming, float]] = {}  # with the time of the last piece
        self.on_msg(lambda _, message, buffers: self._message(message, buffers))

    def _message(self, message: dict, buffers: list[memoryview]) -> None:
        mark = str(message.get("id"))[:80]
        try:
            self._step(mark, message, buffers)
            self.send({"id": mark})
        except (LorakitError, OSError) as error:
            self._close(mark)
            self._refused(str(error))
            self.send({"id": mark, "refused": True})

    def _step(self, mark: str, message: dict, buffers: list[memoryview]) -> None:
        step, name = str(message.get("step")), str(message.get("name"))
        if step == "begin":
            self._forget()
            if len(self._open) >= AT_ONCE or mark in self._open:
                raise LorakitError(
                    f"upload {name}: {AT_ONCE} others are on their way; wait for one of them"
                )
            self._open[mark] = self._begin(name, int(message.get("size") or 0)), time.monotonic()
            return
        if step in ENDED or mark not in self._open:
            raise LorakitError(
                f"upload {name}: {ENDED.get(step, 'it was given up; send it again')}"
            )
        incoming, _ = self._open[mark]
        if step == "end":
            del self._open[mark]
            self._came(incoming)
        elif message.get("at") == incoming.size and len(buffers) == 1:
            incoming.add(buffers[0])
            self._open[mark] = incoming, time.monotonic()
        else:
            raise LorakitError(f"upload {name}: a piece was lost on the way; send it again")

    def _forget(self) -> None:
        for mark, (_, seen) in list(self._open.items()):
            if time.monotonic() - seen > IDLE:
                self._close(mark)

    def _close(self, mark: str) -> None:
        if mark in self._open:
            self._open.pop(mark)[0].close()
