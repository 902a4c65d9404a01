"""How llama.cpp's model of a family differs from transformers'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorakit.common.errors import LorakitError


@dataclass(frozen=True)
class Family:
    """How llama.cpp's model of a family differs from transformers'."""

    architecture: str  # in gguf.MODEL_ARCH
    interleaved: bool = False  # rotates neighbouring columns, where transformers rotates halves
    norm_plus_one: bool = False  # transformers multiplies by 1 + weight
    windows: int = (
        0  # every so many-th layer has no window, as llama.cpp has built in; 0: not looked at
    )


FAMILIES = {
    "llama": Family("LLAMA", interleaved=True),
    "mistral": Family("LLAMA", interleaved=True),
    "phi3": Family("PHI3"),
    "qwen3": Family("QWEN3"),
    "gemma3_text": Family("GEMMA3", norm_plus_one=True),
    "gpt_oss": Family("GPT_OSS", windows=2),
}


def family_of(config: Any) -> Family:
    """Raises `LorakitError` for an architecture that no line here describes, or layers that llama.cpp has not."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise LorakitError(
            f"model_type={kind}: no line of FAMILIES in lorakit/exporting/gguf/families.py describes it; there are "
            f"{', '.join(FAMILIES)}",
            cure="export it --to merged, which llama.cpp's own convert_hf_to_gguf.py takes",
        )
    family, layers = FAMILIES[kind], getattr(config, "layer_types", None)
    if (
        family.windows
        and layers
        and any(
            (name == "full_attention") != ((i + 1) % family.windows == 0)
            for i, name in enumerate(layers)
        )
    ):
        raise LorakitError(
            f"layer_types={layers}: llama.cpp's {kind} looks over everything in each "
            f"{family.windows}nd layer only, so this model cannot be written as GGUF"
        )
    return family
