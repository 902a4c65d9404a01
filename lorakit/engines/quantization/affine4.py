"""MLX's 4 bits with a scale and an offset for every 64 weights."""

from __future__ import annotations

from typing import Any

LABEL = "QLoRA (affine 4-bit)"


def bits_per_weight(width: int) -> float:
    return 4 + 16 * width / 64  # scale and offset in the computing dtype


def quantize_mlx(model: Any) -> None:
    from lorakit.engines.mlx import bases

    bases.quantize(model)
