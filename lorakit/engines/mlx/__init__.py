"""mlx-lm on Apple Silicon; also on its CPU build for Linux, which the tests run on.

One process. Adapters stay apart from the base, in PEFT's names and shapes, and are never fused. This file describes the
engine; `loading.py` loads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.engines import quantization
from lorakit.models import base_model

if TYPE_CHECKING:
    from lorakit.engines.mlx.engine import MLXEngine
    from lorakit.machine.hardware import Facts
    from lorakit.models.spec import Spec
    from lorakit.run import Run

APPLE = "Darwin arm64"
RENAMED = {"mistral": "llama"}  # architectures that mlx-lm serves by another's file
WIDTH = {"fp32": 4, "bf16": 2}  # bytes of a computing dtype


SERVES = (("target_loss", ""), ("document_logps", ""))


def fits(facts: Facts, spec: Spec) -> str:
    """Why it cannot serve: it needs both packages, and a model of mlx-lm's with the layers that get an adapter."""
    lost = next((name for name in ("mlx", "mlx-lm") if not facts.packages.get(name)), None)
    mlx_lm = util.find_spec("mlx_lm")
    if lost or util.find_spec("mlx") is None or mlx_lm is None or not mlx_lm.origin:
        return f"{lost or 'mlx'} is not installed"
    if spec.stored == "nf4":
        return "bitsandbytes' NF4 has no form in MLX"
    kind = spec.config.get("model_type") or model_type(spec.path)
    file = Path(mlx_lm.origin).parent / "models" / f"{RENAMED.get(kind, kind)}.py"
    if not kind or not file.is_file():
        return kind and f"mlx-lm has no {kind}"
    from lorakit.engines.mlx import loading

    return loading.unlike(spec.path, json.dumps(spec.config), spec.target_modules)


def model_type(path: str) -> str:
    """`model_type` in a folder's config.json; of a hub id "", which `load` will see to."""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type", "")
    except (OSError, ValueError, AttributeError):
        return ""


def suits(facts: Facts) -> tuple[int, str]:
    if facts.system == APPLE:
        return 2, "it is made for Apple Silicon: one memory, 4-bit weights, compiled steps"
    return 0, "it is made for Apple Silicon; here it serves when asked for"


def quantizations(facts: Facts) -> tuple[str, ...]:
    return quantization.available(facts, mlx=True)


def precision(facts: Facts) -> tuple[str, str] | None:
    """What to compute in where the run leaves it open; None: as any engine."""
    if facts.system != APPLE:
        return None
    return "bf16", "half the memory of fp32 on Apple's GPU; the adapters stay fp32"


def base_bytes(run: Run, weights: int, experts: int) -> float:
    """Bytes of the base, of whose weights so many are experts': its files' where they are quantized already."""
    width, spec = WIDTH.get(run.precision, 4), base_model.spec(run.model)
    if spec.config:  # on the hub
        if spec.stored == "mxfp4":  # a scale of 8 bits for 32 weights
            return experts * (4 + 8 / 32) / 8 + (weights - experts) * width
    else:
        folder, config = Path(spec.path), base_model.config(run.model)
        said = getattr(config, "quantization", None) or getattr(config, "quantization_config", None)
        if said and folder.is_dir():
            return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
        if said and "bits" in said:  # with a scale and an offset of 16 bits
            return weights * (said["bits"] + 32 / said["group_size"]) / 8
    form = quantization.get("none" if run.quantization == "auto" else run.quantization)
    return weights * form.bits_per_weight(width) / 8


def working_bytes(run: Run, tokens: int, card: tuple[int, int] | None = None) -> float:
    """Bytes alive at the worst moment of a micro-batch beside weights and trained gradients.

    Fitted to the most that MLX's allocator held in 28 small runs on a CPU (23 of them: 6 % less to 27 % more): kept of
    a layer are vectors of its inner widths and attention's scores in full; of the logits all, since MLX runs ahead.
    """
    text, width = base_model.sizes(run.model).get_text_config(), WIDTH.get(run.precision, 4)
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    wide = max(wide) if isinstance(wide, (list, tuple)) else wide
    used = getattr(text, "num_experts_per_tok", None)  # each expert's input and output stand apart
    vector = tokens * width * text.hidden_size
    block = 14 * vector + 5 * tokens * width * wide * (used or 1) + 10 * vector * (used or 0)
    scores = tokens * run.max_length * text.num_attention_heads * width
    head = 5.3 * 4 * tokens * text.vocab_size
    count, asked = text.num_hidden_layers, run.gradient_checkpointing
    recomputed = count if asked is True else 0 if asked == "auto" else min(count, asked)
    kept = recomputed * vector + (count - recomputed) * (0.6 * block + scores)
    worst = 1.6 * block + 4.5 * scores if recomputed == count else 1.2 * block + 3 * scores
    return kept + head + worst


def load(run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()) -> MLXEngine:
    from lorakit.engines.mlx import loading

    return loading.load(run, adapter=adapter)
