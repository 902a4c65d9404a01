"""The adapter merged into the base's unquantized weights, as transformers saves a model (safetensors)."""

from __future__ import annotations

from pathlib import Path

from lorakit.exporting.proof import Proof
from lorakit.exporting.source import Source
from lorakit.exporting.target import EXACT, SIXTEEN_BITS, ExportTarget
from lorakit.exporting.transformers_model import TransformersModel
from lorakit.models import base_model, served
from lorakit.models.merge import quietly

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}  # per weight


def room(weights: int, type_: str) -> tuple[float, float]:
    return 1.05 * BYTES[type_] * weights, 1.3 * BYTES[type_] * weights


def write(source: Source, folder: Path, type_: str) -> list[str]:
    model = source.merged(type_)
    with quietly():
        model.save_pretrained(folder)
    (source.tokenizer or source.processor).save_pretrained(folder)
    return []


def load(folder: Path, proof: Proof) -> TransformersModel:
    task = "auto" if not proof.inputs else classifier_task(proof)
    kind = served.maker(task, base_model.config(str(folder)), str(folder))
    with quietly():
        return TransformersModel(
            kind.from_pretrained(folder, dtype="auto", trust_remote_code=False)
        )


def classifier_task(proof: Proof) -> str:
    """The task of a classifier, by what it reads."""
    return "classify_image" if "pixel_values" in proof.inputs[0] else "classify_text"


TARGET = ExportTarget(
    types={"bf16": SIXTEEN_BITS, "fp16": SIXTEEN_BITS, "fp32": EXACT},
    write=write,
    load=load,
    room=room,
    weight_files=("*.safetensors",),
    use="{kind}.from_pretrained({name!r})",
    library="transformers",
    classifiers=True,
)
