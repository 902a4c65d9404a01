"""Weights & Biases. The key comes from `wandb login` or WANDB_API_KEY; WANDB_MODE=offline keeps all on this machine,
`wandb sync` sends it later."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

INSTALL = "pip install wandb"
CURE = "wandb login, or set WANDB_MODE=offline"


class Tracker:
    def __init__(self, name: str, settings: dict[str, Any], folder: Path):
        import wandb

        known = folder / "wandb-id.txt"
        if not known.exists():
            known.write_text(uuid.uuid4().hex, encoding="utf-8")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lorakit"),
            name=name,
            config=settings,
            dir=str(folder),
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, update: int, values: dict[str, float]) -> None:
        self.run.log(
            values | {"update": update}
        )  # its own steps may only grow; a run that goes on steps back

    def close(self) -> None:
        self.run.finish()
