"""Where else a run's lines go while it trains: a file per tool, through the tool's own library.

Each has a class `Tracker(name, settings, folder)` with `log(update, values)` and `close()`. `folder` is the run's own;
a run that goes on after a cut goes on in the same place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError


class Trackers:
    """Those that a run names. One that fails later is left out with a word: training goes on."""

    def __init__(self, names: Sequence[str], name: str, settings: dict[str, Any], folder: Path):
        self.open: dict[str, Any] = {}
        for one in names:
            module = registry.load("trackers", one)
            try:
                self.open[one] = module.Tracker(name, settings, folder)
            except ImportError:
                self.close()
                raise LorakitError(
                    f"log_to: {one}: its library is not installed: {module.INSTALL}"
                ) from None
            except Exception as error:  # of a service: no key, no network
                self.close()
                raise LorakitError(
                    f"log_to: {one} cannot begin ({error}); leave it out of log_to, or: "
                    f"{module.CURE}"
                ) from None

    def log(self, line: dict[str, Any]) -> None:
        """A line of `history.jsonl`."""
        values = {
            k: float(v) for k, v in line.items() if k != "update" and isinstance(v, (int, float))
        }
        for name in list(self.open):
            try:
                self.open[name].log(line["update"], values)
            except Exception as error:  # whatever a service raises: it must not end a training
                print(
                    f"log_to: {name} is left out from update {line['update']} on: {error}",
                    file=sys.stderr,
                )
                del self.open[name]

    def close(self) -> None:
        for name, tracker in self.open.items():
            try:
                tracker.close()
            except Exception as error:
                print(f"log_to: {name} could not be closed: {error}", file=sys.stderr)
        self.open = {}
