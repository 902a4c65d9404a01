"""transformers + PEFT + bitsandbytes, on CUDA, MPS and CPU. This file describes the engine; `loading.py` loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.engines import quantization
from lorakit.run import variants as settings

if TYPE_CHECKING:
    from lorakit.engines.torch.engine import TorchEngine
    from lorakit.machine.hardware import Facts
    from lorakit.models.spec import Spec
    from lorakit.run import Run

SERVES = (
    ("target_loss", ""),
    ("target_loss", "image"),
    ("target_loss", "sound"),
    ("class_logits", ""),
    ("class_logits", "image"),
    ("document_logps", ""),
)
FAKE_QUANTIZATION = True
VARIANTS = (*settings.VARIANTS, "optimizer")
HALF_PRODUCTS = True


def fits(facts: Facts, spec: Spec) -> str:
    """Why it cannot serve here; it serves everywhere that torch runs."""
    if not facts.packages.get("torch"):
        return "torch is not installed"
    if spec.stored == "nf4":
        return (
            f"in {spec.name or spec.path} each expert is a layer of its own, which transformers' "
            "model does not have"
        )
    lost = next((c for c in facts.cards if not c.served(facts.torch_archs)), None)
    if lost:
        return f"torch {facts.packages['torch']} was not built for {lost.name} ({lost.arch})"
    return ""


def suits(facts: Facts) -> tuple[int, str]:
    fallback = ""
    if facts.mps_fallback:
        fallback = ", what it lacks on the CPU: PYTORCH_ENABLE_MPS_FALLBACK is set"
    return 1, f"it serves {facts.device}{fallback}"


def quantizations(facts: Facts) -> tuple[str, ...]:
    return quantization.available(facts, torch=True)


def row_positions(run: Run) -> int:
    from lorakit.engines.torch import places

    return places.places(run)


def working_bytes(run: Run, tokens: int, card: tuple[int, int] | None = None) -> int:
    from lorakit.engines.torch import working_memory

    return working_memory.working_bytes(run, tokens, card)


def load(
    run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()
) -> TorchEngine:
    from lorakit.engines.torch import loading

    return loading.load(run, adapter=adapter, classes=classes)
