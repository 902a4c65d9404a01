"""bitsandbytes' 8-bit integers, outlier features apart (arXiv 2208.07339)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorakit.engines.quantization import nf4

LABEL = "LoRA (int8 base)"
CONFLICTS = {"use_dora": ((True,), "DoRA needs nf4 or none")}
unavailable = nf4.unavailable


def bits_per_weight(width: int) -> float:
    return 8.1


def load_options(dtype: Any, skip: Sequence[str]) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip) or None)
    return {"quantization_config": config}
