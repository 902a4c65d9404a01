"""For mlx-lm on a Mac: the merged model in MLX's format, in 16 or 4 bits, or the adapter for `--adapter-path`.

mlx_lm.generate --model outputs/run/export/mlx-4bit --prompt "…"
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.common.files import remove, temporary_folder
from lorakit.common.processes import part
from lorakit.engines.mlx import adapters, bases
from lorakit.exporting.proof import Proof
from lorakit.exporting.source import Source
from lorakit.exporting.target import EXACT, FOUR_BITS, SIXTEEN_BITS, ExportTarget
from lorakit.models.merge import quietly

BYTES = {"fp16": 2, "4bit": 0.6, "fp32": 4, "adapter": 0.1}  # per weight


def room(weights: int, type_: str) -> tuple[float, float]:
    """The merged model lies on the disk while MLX reads it."""
    merged = 4 if type_ in ("fp32", "adapter") else 2
    return weights * (BYTES[type_] + merged) * 1.05, weights * 4.5


def write(source: Source, folder: Path, type_: str) -> list[str]:
    if type_ == "adapter":
        adapters.adapter_to_mlx(source.saved, folder)
        return [
            f"goes onto {source.run.model} in MLX's format: lorakit convert {source.run.model} mlx-base"
        ]
    with scratch(folder) as merged:
        model = source.merged("fp32" if type_ == "fp32" else "fp16")
        with quietly():
            model.save_pretrained(merged)
        source.tokenizer.save_pretrained(merged)
        del model
        bases.base_to_mlx(str(merged), folder, four_bit=type_ == "4bit")
    return []


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder beside an export, gone afterwards; one that a killed process left is swept by the next export."""
    path = folder.with_name(f"merged{part()}")
    try:
        yield path
    finally:
        remove(path)


def load(folder: Path, proof: Proof) -> MlxLm:
    return MlxLm(folder, proof)


class MlxLm:
    """mlx-lm as it is installed."""

    def __init__(self, folder: Path, proof: Proof):
        import mlx.core as mx
        from mlx_lm import utils

        self.mx = mx
        if (folder / adapters.MLX_FILES[1]).is_file():
            with temporary_folder() as place:
                base = bases.base_to_mlx(proof.base, Path(place) / "base")
                self.model, _ = utils.load(str(base), adapter_path=str(folder))
                mx.eval(self.model.parameters())
        else:
            self.model, _ = utils.load(str(folder))
        if not mx.metal.is_available():  # its CPU build takes 40 times as long for 16 bits
            self.model.set_dtype(mx.float32)

    def generate(
        self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[int]:
        from mlx_lm.generate import generate_step

        out: list[int] = []
        tokens = self.mx.array([int(i) for i in prompt])
        for token, _ in generate_step(tokens, self.model, max_tokens=max_new_tokens):
            if int(token) in stop_ids:
                break
            out.append(int(token))
        return out

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        found = self.model(self.mx.array([[int(i) for i in ids]]))[0]
        return np.array(found.astype(self.mx.float32))

    def probabilities(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        raise LorakitError("mlx-lm runs no classifiers")


TARGET = ExportTarget(
    types={"fp16": SIXTEEN_BITS, "4bit": FOUR_BITS, "fp32": EXACT, "adapter": SIXTEEN_BITS},
    write=write,
    load=load,
    room=room,
    packages=("mlx-lm",),
    weight_files=("*.safetensors",),
    use='mlx_lm.generate --model {name} --prompt "…"',
    rounds_yarn=True,
    trained_for={"4bit": "affine4"},
)
