"""For mlx-lm on a Mac: the merged model in MLX's format, in 16 or 4 bits, or the adapter for `--adapter-path`.

mlx_lm.generate --model outputs/run/export/mlx-4bit --prompt "…"
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.common.files import remove
from lorakit.engines.mlx import convert
from lorakit.exporting.round_trip import DEFAULT_BOUNDS, Source, rounded
from lorakit.exporting.targets.merged import merged

USE = 'mlx_lm.generate --model {name} --prompt "…"'
PACKAGES = ("mlx-lm",)  # what it writes with, and what it is run with to prove it
TYPES = ("fp16", "4bit", "fp32", "adapter")
BOUNDS = {
    "fp16": DEFAULT_BOUNDS["16"],
    "4bit": DEFAULT_BOUNDS["4"],
    "fp32": DEFAULT_BOUNDS["fp32"],
    "adapter": DEFAULT_BOUNDS["16"],
}  # the base computes in its own 16 bits
ROUNDED = {"4bit": "affine4"}
BYTES = {"fp16": 2, "4bit": 0.6, "fp32": 4, "adapter": 0.1}


def room(weights: int, kind: str) -> tuple[float, float]:
    """The merged model lies on the disk while MLX reads it."""
    return weights * (BYTES[kind] + (4 if kind in ("fp32", "adapter") else 2)) * 1.05, weights * 4.5


def bounds(source: Source, kind: str) -> tuple[float, float]:
    return rounded(
        source, BOUNDS["fp16" if ROUNDED.get(kind) == source.run.fake_quantization else kind]
    )


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def export(source: Source, folder: Path, kind: str) -> list[str]:
    if util.find_spec("mlx_lm") is None:
        raise LorakitError(convert.NEEDED)
    if kind == "adapter":
        convert.adapter_to_mlx(source.saved, folder)
        return [
            f"goes onto {source.run.model} in MLX's format: lorakit convert {source.run.model} mlx-base"
        ]
    with scratch(folder) as whole:
        model = merged(source, "fp32" if kind == "fp32" else "fp16")
        model.save_pretrained(whole)
        source.tokenizer.save_pretrained(whole)
        del model
        convert.base_to_mlx(str(whole), folder, four_bit=kind == "4bit")
    return []


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder beside an export, gone afterwards; one that a killed process left is swept by the next export."""
    path = folder.with_name(f"merged.part{os.getpid()}")
    try:
        yield path
    finally:
        remove(path)


def load(folder: Path, source: Source) -> MlxLm:
    return MlxLm(folder, source)


class MlxLm:
    """mlx-lm as it is installed."""

    def __init__(self, folder: Path, source: Source):
        import mlx.core as mx
        from mlx_lm import utils

        self.mx = mx
        if (folder / convert.MLX_FILES[1]).is_file():
            with tempfile.TemporaryDirectory() as place:
                base = convert.base_to_mlx(source.run.model, Path(place) / "base")
                self.model, _ = utils.load(str(base), adapter_path=str(folder))
                mx.eval(self.model.parameters())
        else:
            self.model, _ = utils.load(str(folder))
        if not mx.metal.is_available():  # its CPU build takes 40 times as long for 16 bits
            self.model.set_dtype(mx.float32)

    def generate(self, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
        from mlx_lm.generate import generate_step

        out: list[int] = []
        for token, _ in generate_step(self.mx.array(prompt), self.model, max_tokens=max_new_tokens):
            if int(token) in stop_ids:
                break
            out.append(int(token))
        return out

    def nats(self, ids: list[int], targets: list[bool]) -> float:
        logits = np.array(
            self.model(self.mx.array([ids]))[0].astype(self.mx.float32), dtype=np.float64
        )
        logits -= logits.max(-1, keepdims=True)
        chosen: Any = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -float(sum(chosen[i - 1, ids[i]] for i, on in enumerate(targets) if on))
