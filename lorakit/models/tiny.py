"""The embedded base: a Llama of 1-3 M parameters, trained by `notebooks/pretrain_tiny.ipynb` on generated text."""

from pathlib import Path

from lorakit.models import Spec

SPEC = Spec(
    path=str(Path(__file__).parent.parent / "assets" / "tiny"),
    licence="Apache-2.0",
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    source="notebooks/pretrain_tiny.ipynb",
)
