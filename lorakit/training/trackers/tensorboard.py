"""TensorBoard, through `torch.utils.tensorboard`: event files in the run's folder; `tensorboard --logdir outputs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INSTALL = "pip install tensorboard"
CURE = "free some space"
# The scalars that Hugging Face's Trainer writes, so that both stand in one picture.
TAGS = {
    "loss": "train/loss",
    "validation_loss": "eval/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
}


class Tracker:
    def __init__(self, name: str, settings: dict[str, Any], folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        self.writer.add_text("run.yaml", f"```\n{json.dumps(settings, indent=1, default=str)}\n```")

    def log(self, update: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(TAGS.get(name, f"train/{name}"), value, update)

    def close(self) -> None:
        self.writer.close()
