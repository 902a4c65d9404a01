"""bitsandbytes' 4-bit NormalFloat with double quantization: QLoRA (arXiv 2305.14314)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.machine.hardware import Facts

LABEL = "QLoRA (NF4)"
APPLE = (0, 50)  # from this version on bitsandbytes computes on Apple's GPU


def bits_per_weight(width: int) -> float:
    return 4.127  # 4 + 8/64 + 32/(64·256), arXiv 2305.14314 §3


def unavailable(facts: Facts) -> str:
    version = tuple(map(int, re.findall(r"\d+", facts.packages.get("bitsandbytes", "0.0"))[:2]))
    if facts.mps and version < APPLE:
        return f"needs bitsandbytes {'.'.join(map(str, APPLE))} or later on Apple's GPU"
    return ""


def load_options(dtype: Any, skip: Sequence[str]) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=list(skip) or None,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}
