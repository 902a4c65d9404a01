"""The fast parts, each beside its plain form and tested against it.

`install` puts them into a model where they compute the same; what a model does otherwise stays as it is.
"""

from __future__ import annotations

from typing import Any


def install(model: Any, form: str = "none") -> str:
    """What was put in, in words: `16 linear, 2 gated MLP, 4 RMSNorm`; `form`: what its weights are rounded to."""
    from lorakit.engines.torch.kernels import lora, norm, rotary, rounding

    found = lora.install(model, form) + norm.install(model) + rotary.install(model)
    if form != "none":
        found += rounding.settle(model, form)
    return ", ".join(f"{n} {what}" for what, n in found.items() if n) or "none"
