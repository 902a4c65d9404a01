"""The tensors of mlx-lm's models under the names that transformers and PEFT give them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from lorakit.engines.mlx.adapters import PREFIX


def transformers_name(path: str) -> str:
    """A layer's name in transformers' text models; mlx-lm wraps those of several media once more."""
    return path.removeprefix("language_model.")


def _peft_name(path: str) -> str:
    return PREFIX + transformers_name(path)


def frozen_tensors(model: Any) -> dict[str, Any]:
    """name -> array, of all but the adapters."""
    from mlx.utils import tree_flatten

    return {_peft_name(n): t for n, t in tree_flatten(model.parameters()) if ".lora_" not in n}


def frozen_sizes(model: Any) -> dict[str, int]:
    """name -> values, a quantized weight's counted as what it stands for."""
    sizes = {}
    for path, module in model.named_modules():
        for key, value in module.items():
            if isinstance(value, mx.array) and not key.startswith(("_", "lora_")):
                name = _peft_name(f"{path}.{key}")
                if hasattr(module, "bits") and key in ("scales", "biases"):
                    continue
                packed = hasattr(module, "bits") and key == "weight"
                sizes[name] = value.size * 32 // module.bits if packed else value.size
    return sizes
