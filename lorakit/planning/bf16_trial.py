"""How much faster than in fp32 this CPU multiplies in bf16: timed once for the shapes of a model."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from lorakit.common.files import remembered
from lorakit.machine import hardware

TOKENS = 512  # rows of the products that are timed
LARGEST = 4  # shapes that are timed: those with the most weights in all


def gain(skeleton: Any) -> float:
    """Seconds in fp32 over seconds in bf16, for the products of a model's linear layers."""
    import torch

    shapes = shapes_of(skeleton)
    key = [hardware.bf16_units(), torch.__version__, torch.get_num_threads(), shapes]
    return float(remembered("bf16", key, lambda: _timed(shapes)))


def shapes_of(skeleton: Any) -> list[tuple[int, int, int]]:
    """(out, in, layers) of the linear layers, the `LARGEST` with the most weights."""
    import torch

    linear = [m for m in skeleton.modules() if isinstance(m, torch.nn.Linear)]
    counted = Counter((m.out_features, m.in_features) for m in linear)
    found = sorted(((o, i, n) for (o, i), n in counted.items()), key=lambda s: -s[0] * s[1] * s[2])
    return found[:LARGEST]


def _timed(shapes: list[tuple[int, int, int]]) -> float:
    import torch

    seconds = {torch.float32: 0.0, torch.bfloat16: 0.0}
    for out, into, layers in shapes:
        for dtype in seconds:
            x, weight = torch.ones(TOKENS, into, dtype=dtype), torch.ones(out, into, dtype=dtype)
            seconds[dtype] += layers * min(_once(x, weight) for _ in range(4))
    return seconds[torch.float32] / max(seconds[torch.bfloat16], 1e-9)


def _once(x: Any, weight: Any) -> float:
    import torch

    began = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - began
