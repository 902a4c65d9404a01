"""The embedded base: a Llama of 1-3 M parameters, trained by `notebooks/pretrain_tiny.ipynb` on generated text."""

from pathlib import Path

from lorakit.models import GATED, Spec

SPEC = Spec(
    path=str(Path(__file__).parent.parent / "assets" / "tiny"),
    licence="Apache-2.0",
    target_modules=GATED,
    source="notebooks/pretrain_tiny.ipynb",
)
