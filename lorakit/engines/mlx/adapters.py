"""Adapters of PEFT and of mlx-lm (https://github.com/ml-explore/mlx-lm), each in the other's format.

mlx-lm keeps `lora_a` (in, r) and `lora_b` (r, out) where PEFT keeps A (r, in) and B (out, r), and `scale` where PEFT
keeps alpha.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, require_keys

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
MLX_FILES = ("adapter_config.json", "adapters.safetensors")
PREFIX = "base_model.model."  # before every name in PEFT's files
# Settings of PEFT that change what an adapter computes, and have no counterpart.
UNSERVED = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_parameters",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "use_qalora",
    "fan_in_fan_out",
    "alora_invocation_tokens",
)
NAME = r"(?P<layer>.+)\.{}(\.default)?(\.weight)?"


# Adapters
def read_peft(folder: Path | str) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """(settings, layer -> {"A": (r, in), "B": (out, r)}) of an adapter in PEFT's format.

    Raises `LorakitError` when it is damaged, or uses a variant without a counterpart.
    """
    settings, tensors = _read(Path(folder), PEFT_FILES)
    unserved = [name for name in UNSERVED if settings.get(name)]
    if (
        settings.get("peft_type", "LORA") != "LORA"
        or settings.get("bias", "none") != "none"
        or unserved
    ):
        what = (
            unserved[0]
            if unserved
            else f"{settings.get('peft_type')} with bias={settings.get('bias')!r}"
        )
        raise LorakitError(
            f"{folder}: this adapter uses {what}, which has no counterpart here; only plain LoRA has"
        )
    return settings, _layers(folder, tensors, {"A": "lora_A", "B": "lora_B"})


def scale(settings: dict[str, Any]) -> float:
    """What PEFT multiplies B A x by: alpha / r, or alpha / sqrt(r) (arXiv 2312.03732)."""
    return settings["lora_alpha"] / (settings["r"] ** (0.5 if settings.get("use_rslora") else 1))


def adapter_to_mlx(source: Path | str, target: Path | str) -> Path:
    """PEFT's adapter in mlx-lm's format, for `mlx_lm.generate --adapter-path`."""
    settings, layers = read_peft(source)
    found = {name: re.fullmatch(r"(.*\.layers)\.(\d+)\.(.+)", name) for name in layers}
    places = [place for place in found.values() if place]
    if len(places) < len(found):
        lost = next(name for name, place in found.items() if not place)
        raise LorakitError(
            f"{source}: '{lost}' is in no layer of the model, and mlx-lm adapts those alone"
        )
    each = {
        number: {p[3] for p in places if int(p[2]) == number}
        for number in {int(p[2]) for p in places}
    }
    # The same keys in the last n layers, as mlx-lm writes them, cannot be told from a gap before them; full paths can.
    keys = (
        sorted(layers)
        if set(each) != set(range(len(each))) or len(set(map(frozenset, each.values()))) > 1
        else sorted(each[0])
    )
    content = {
        "fine_tune_type": "lora",
        "num_layers": len(each),
        "model": settings.get("base_model_name_or_path"),
        "lora_parameters": {
            "rank": settings["r"],
            "scale": scale(settings),
            "keys": keys,
            "dropout": settings.get("lora_dropout", 0.0),
        },
    }
    tensors = {
        f"{name}.lora_{key}": pair[key.upper()].T for name, pair in layers.items() for key in "ab"
    }
    return _write(Path(target), MLX_FILES, content, tensors)


def adapter_to_peft(source: Path | str, target: Path | str, model: str | None = None) -> Path:
    """mlx-lm's adapter in PEFT's format; `model`: the base that its settings name."""
    settings, tensors = _read(Path(source), MLX_FILES)
    kind, given = settings.get("fine_tune_type", "lora"), settings.get("lora_parameters") or {}
    if kind != "lora" or not {"rank", "scale"} <= given.keys():
        raise LorakitError(
            f"{source}: fine_tune_type={kind!r} has no counterpart here; only plain LoRA has"
        )
    layers = {
        name: {key: tensor.T for key, tensor in pair.items()}
        for name, pair in _layers(source, tensors, {"A": "lora_a", "B": "lora_b"}).items()
    }
    if wrong := [name for name, pair in layers.items() if pair["A"].ndim != 2]:
        raise LorakitError(
            f"{source}: '{wrong[0]}' adapts stacked experts, which has no counterpart here"
        )
    return write_peft(
        Path(target),
        layers,
        rank=given["rank"],
        alpha=given["scale"] * given["rank"],
        dropout=given.get("dropout", 0.0),
        model=model or settings.get("model"),
    )


def write_peft(
    target: Path,
    layers: dict[str, dict[str, np.ndarray]],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    use_rslora: bool = False,
    targets: list[str] | str | None = None,
    model: str | None = None,
) -> Path:
    """An adapter that plain PEFT loads; without `targets` exactly these layers get one."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=use_rslora,
        task_type="CAUSAL_LM",
        target_modules=targets or sorted(layers),
        base_model_name_or_path=model,
        inference_mode=True,
    )
    # PEFT keeps sets, which JSON has not.
    content = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    tensors = {
        f"{PREFIX}{name}.lora_{key}.weight": pair[key]
        for name, pair in layers.items()
        for key in "AB"
    }
    return _write(target, PEFT_FILES, content, tensors)


def _read(folder: Path, files: tuple[str, str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        settings = require_keys(json.loads((folder / files[0]).read_text(encoding="utf-8")))
        return settings, load_file(folder / files[1])
    except (OSError, ValueError, SafetensorError) as error:
        raise LorakitError(
            f"{folder}: no adapter can be read there ({error}); it needs {' and '.join(files)}"
        ) from None


def _write(
    folder: Path, files: tuple[str, str], settings: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Path:
    with atomic_write(folder) as part:
        part.mkdir(parents=True)
        (part / files[0]).write_text(
            json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8"
        )
        save_file(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()},
            part / files[1],
            {"format": "pt"},
        )
    return folder


def _layers(
    folder: Path | str, tensors: dict[str, np.ndarray], names: dict[str, str]
) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for full, tensor in tensors.items():
        for key, name in names.items():
            if place := re.fullmatch(NAME.format(name), full.removeprefix(PREFIX)):
                found.setdefault(place["layer"], {})[key] = tensor
                break
        else:
            raise LorakitError(
                f"{folder}: '{full}' is no tensor of a plain LoRA, which alone has a counterpart here"
            )
    if lost := [name for name, pair in found.items() if pair.keys() != names.keys()]:
        raise LorakitError(f"{folder}: '{lost[0]}' has one of two tensors; the file is damaged")
    return found
