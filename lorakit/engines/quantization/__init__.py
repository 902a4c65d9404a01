"""Number formats that a frozen base is kept in, one file each.

To add one, write a file with what `protocol.py` requires. An engine serves the formats that implement its hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lorakit.common import registry
from lorakit.engines.quantization.protocol import Quantization as INTERFACE

if TYPE_CHECKING:
    from lorakit.machine.hardware import Facts

HELPERS = ("protocol",)


def get(name: str) -> INTERFACE:
    """The format of this name. Raises `LorakitError` listing the formats present."""
    return cast(INTERFACE, registry.load("quantization", name))


def available(facts: Facts, *, torch: bool = False, mlx: bool = False) -> tuple[str, ...]:
    """Formats for an engine over torch or MLX that this machine can compute with, the smallest first."""
    formats = {name: get(name) for name in registry.names("quantization")}
    served = [
        name
        for name, form in formats.items()
        if (not torch or form.load_options) and (not mlx or form.quantize_mlx)
        if not form.unavailable(facts)
    ]
    return tuple(sorted(served, key=lambda name: (formats[name].bits_per_weight(2), name)))
