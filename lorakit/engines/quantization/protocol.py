"""`Quantization`: what a file of this folder says about its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lorakit.machine.hardware import Facts

# (the computing dtype, names of modules that keep their precision) -> options of transformers' `from_pretrained`
LoadOptions = Callable[[Any, Sequence[str]], dict[str, Any]]
# (model, device, names of modules that keep their precision) -> (what was done, reason)
Convert = Callable[[Any, Any, Sequence[str]], tuple[Any, str]]


def _available(facts: Facts) -> str:
    return ""


class Quantization(Protocol):
    """A number format of a frozen base. Importing its file imports no framework."""

    LABEL: str  # the method's name in records and reports, e.g. "QLoRA (NF4)"
    DEQUANTIZES: bool = (
        True  # whether a layer's weights are restored to the computing dtype to multiply
    )
    # settings that the format refuses: setting -> (values, why)
    CONFLICTS: Mapping[str, tuple[tuple[Any, ...], str]] = {}

    def bits_per_weight(self, width: int) -> float:
        """Bits that a weight of a quantized layer takes, its share of scales included; `width`: bytes of the
        computing dtype."""

    # Why this machine cannot use it, to follow "quantization='…'"; "" when it can.
    unavailable: Callable[[Facts], str] = _available
    # Engines over transformers: how a model is loaded so. None: they do not serve the format.
    load_options: LoadOptions | None = None
    # The same engines: what is done to the loaded model.
    convert: Convert | None = None
    # The engine over MLX: quantizes a loaded model in place. None: it does not serve the format.
    quantize_mlx: Callable[[Any], None] | None = None
