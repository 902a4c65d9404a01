"""One line of progress in a terminal while a run trains: the phase, then the loss and the time that is left."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType

from lorakit.notebook.live import Tail, facts_line
from lorakit.runs.folder import Folder
from lorakit.runs.phases import phase

EVERY = 0.3  # seconds between two looks


class Progress:
    """Within its block one line replaces itself; other bars are off. Does nothing where there is no terminal."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._shown = sys.stderr.isatty()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._line = ""

    def __enter__(self) -> Progress:
        if self._shown:
            os.environ["TQDM_DISABLE"] = "1"
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._end.set()
            self._thread.join()
            os.environ.pop("TQDM_DISABLE", None)
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _run(self) -> None:
        tail = Tail(self.folder)
        while not self._end.wait(EVERY):
            updates, validations = tail.read()
            now = phase(self.folder, len(updates))
            self._put(facts_line(self.folder, now, updates, validations))

    def _put(self, line: str) -> None:
        """Over the line before, cut to the width of the terminal."""
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            width = 80
        line = line if len(line) < width else line[: width - 2] + "…"
        if line != self._line:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._line = line
