"""The fast parts, each beside its plain form and tested against it.

`install` puts them into a model where they compute the same; what a model does otherwise stays as it is.
"""

from __future__ import annotations

from typing import Any

GRAIN = 32  # tokens


def grain(device: Any, dtype: Any) -> int:
    """To a multiple of so many tokens what is multiplied is filled up. oneDNN makes a kernel for every new shape of a
    product in bf16, which takes longer than the product itself, and keeps 1,024 of them."""
    return GRAIN if device.type == "cpu" and "bfloat16" in str(dtype) else 1


def install(model: Any, form: str = "none") -> str:
    """What was put in, in words: `16 linear, 2 gated MLP, 4 RMSNorm`; `form`: what its weights are rounded to."""
    from lorakit.engines.torch.kernels import lora, norm, rotary, rounding

    found = lora.install(model, form) + norm.install(model) + rotary.install(model)
    if form != "none":
        found += rounding.settle(model, form)
    return ", ".join(f"{n} {what}" for what, n in found.items() if n) or "none"
