"""The embedded base: a Llama of 1-3 M parameters, trained by `notebooks/pretrain_tiny.ipynb` on generated text."""

from lorakit.common.locations import ASSETS
from lorakit.models.spec import GATED, Spec

SPEC = Spec(
    path=str(ASSETS / "tiny"),
    licence="Apache-2.0",
    target_modules=GATED,
    source="notebooks/pretrain_tiny.ipynb",
)
