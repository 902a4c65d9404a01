"""How many positions a row counts where not its words decide that. Imports no framework: `lorakit plan` asks often."""

from __future__ import annotations

from typing import Any

from lorakit.models import base_model
from lorakit.run import Run

PATCH = 256  # pixels that make a place of a picture to classify
CAPTION = 64  # tokens of a caption, where the picture's places are none of the words'


def places(run: Run) -> int:
    """Of one row, where not its words decide how far the model goes: the places that it is counted with; else 0."""
    config = base_model.sizes(run.model)
    if hasattr(config, "max_source_positions"):
        return config.max_source_positions + min(run.max_length, config.max_target_positions)
    if side := getattr(config, "image_size", None):
        return max(1, side * side // PATCH)
    return min(run.max_length, CAPTION) if captions(config) else 0


def captions(config: Any) -> bool:
    """Whether a picture stands beside the words, as in BLIP, and not among them."""
    return hasattr(config, "vision_config") and getattr(config, "image_token_id", None) is None
