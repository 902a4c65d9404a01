"""8-bit floating point, multiplied by the FP8 units of Ada and Hopper. Two copies, one for each direction of a pass,
make it as large as bf16 and faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.machine.hardware import Facts

LABEL = "LoRA (FP8 base)"
DEQUANTIZES = False
CONFLICTS = {
    "use_dora": ((True,), "DoRA needs nf4 or none"),
    "shard": ((True,), "weights in fp8 stay whole in every process; spread nf4 or none"),
}


def bits_per_weight(width: int) -> float:
    return 2 * 8


def unavailable(facts: Facts) -> str:
    """Without a card the same numbers are computed slowly, for a rehearsal."""
    old = next((c for c in facts.cards if not c.fp8), None)
    if old:
        capability = ".".join(map(str, old.capability))
        return (
            "needs a card of compute capability 8.9 or later (Ada, Hopper), and "
            f"{old.name} has {capability}; use nf4 or none"
        )
    return "has no form on Apple's GPU; use nf4 or none" if facts.mps else ""


def load_options(dtype: Any, skip: Sequence[str]) -> dict[str, Any]:
    return {}


def convert(model: Any, device: Any, skip: Sequence[str]) -> tuple[str, str]:
    from lorakit.engines.torch import layers

    return layers.in_fp8(model, device, skip)
