"""trackio: kept on this machine (TRACKIO_DIR, else the Hugging Face cache), shown by `trackio show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INSTALL = "pip install trackio"
CURE = "free some space, or name another folder in TRACKIO_DIR"


class Tracker:
    def __init__(self, name: str, settings: dict[str, Any], folder: Path):
        import trackio

        self.run = trackio.init(
            project="lorakit",
            name=name,
            config=settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, update: int, values: dict[str, float]) -> None:
        self.run.log(values, step=update)

    def close(self) -> None:
        self.run.finish()
