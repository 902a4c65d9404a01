"""The base in the computing dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LABEL = "LoRA"
DEQUANTIZES = False


def bits_per_weight(width: int) -> float:
    return 8 * width


def load_options(dtype: Any, skip: Sequence[str]) -> dict[str, Any]:
    return {}


def quantize_mlx(model: Any) -> None:
    pass
