"""Between the two worlds: bases as transformers saves them and as mlx-lm does, adapters of PEFT and of mlx-lm.

mlx-lm (https://github.com/ml-explore/mlx-lm) names tensors as transformers does but for stacked experts, keeps
`lora_a` (in, r) and `lora_b` (r, out) where PEFT keeps A (r, in) and B (out, r), and `scale` where PEFT keeps alpha.
"""

from __future__ import annotations

import json
import re
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from lorakit.common.errors import LorakitError
from lorakit.common.files import sound, whole
from lorakit.models import base_model

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
MLX_FILES = ("adapter_config.json", "adapters.safetensors")
NEEDED = "mlx-lm is not installed, which this needs: pip install 'lorakit[mac]'"
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
GROUPS = (64, 32)  # weights that share a scale: the first that divides a layer's width
NAME = r"(?P<layer>.+)\.{}(\.default)?(\.weight)?"


def convert(source: Path | str, target: Path | str, *, four_bit: bool = False) -> Path:
    """An adapter or a base in the other world's format; which it is shows in its files. `four_bit`: of a base for MLX.

    Raises `LorakitError` for what has no counterpart.
    """
    folder = Path(source)
    if four_bit and any((folder / names[1]).is_file() for names in (PEFT_FILES, MLX_FILES)):
        raise LorakitError(f"{folder} is an adapter: only a base is made of 4 bits")
    if (folder / PEFT_FILES[1]).is_file():
        return adapter_to_mlx(folder, target)
    if (folder / MLX_FILES[1]).is_file():
        return adapter_to_peft(folder, target)
    if util.find_spec("mlx_lm") is None:
        raise LorakitError(NEEDED)
    if not _of_transformers(files(str(source))):
        return base_to_transformers(str(source), target)
    return base_to_mlx(str(source), target, four_bit=four_bit)


def _of_transformers(folder: Path) -> bool:
    """MLX's own writer names itself in the header of every file."""
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as content:
            return (content.metadata() or {}).get("format", "pt") == "pt"
    return True


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
        settings = sound(json.loads((folder / files[0]).read_text(encoding="utf-8")))
        return settings, load_file(folder / files[1])
    except (OSError, ValueError, SafetensorError) as error:
        raise LorakitError(
            f"{folder}: no adapter can be read there ({error}); it needs {' and '.join(files)}"
        ) from None


def _write(
    folder: Path, files: tuple[str, str], settings: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Path:
    with whole(folder) as part:
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


# Bases


def files(model: str) -> Path:
    """The folder with a base's files, fetched from the hub where it is no folder."""
    folder = Path(base_model.path(model))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "model*.safetensors"]))
    except Exception as error:  # of the network, the hub, the disk
        raise base_model.unusable(model, error) from None


def read_base(folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """(mlx-lm's model, its settings): of transformers' files or of MLX's, weights not yet in memory.

    Raises what mlx-lm raises for an architecture that it does not have, and for files that do not fit it.
    """
    from mlx_lm import utils

    def classes(config: dict) -> tuple[type, type]:
        model, arguments = utils._get_classes(config)
        if config["model_type"] != "gpt_oss":
            return model, arguments

        def sanitize(self: Any, weights: dict) -> dict:
            return model.sanitize(self, experts_to_mlx(weights))

        return type(model.__name__, (model,), {"sanitize": sanitize}), arguments

    model, settings = utils.load_model(
        folder, lazy=True, model_config=arguments(config), get_model_classes=classes
    )
    exact_positions(model, config.get_text_config())
    return model, settings


def arguments(config: Any) -> dict[str, Any]:
    """What mlx-lm's models read under other names than transformers 5 writes.

    Raises `LorakitError` where layers alternate in a way that mlx-lm's model cannot.
    """
    text = config.get_text_config()
    rope, kinds = (
        dict(getattr(text, "rope_parameters", None) or {}),
        getattr(text, "layer_types", None),
    )
    found = {old: getattr(text, new, None) for old, new in text.attribute_map.items()}
    if "full_attention" in rope:  # one for each kind of layer
        if local := rope.get("sliding_attention"):
            found["rope_local_base_freq"] = local["rope_theta"]
        rope = dict(rope["full_attention"])
    if "rope_theta" in rope:
        found["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        found["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = rope | {"type": rope["rope_type"]}
    if text.model_type == "gemma3_text" and kinds:
        every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
        if kinds != [
            "full_attention" if (i + 1) % every == 0 else "sliding_attention"
            for i in range(len(kinds))
        ]:
            raise LorakitError(
                f"layer_types={kinds}: mlx-lm's {text.model_type} has full attention every so many "
                "layers only; leave engine out"
            )
        found["sliding_window_pattern"] = every
    if text is config:
        return found
    return found | {"vocab_size": text.vocab_size, "text_config": {**text.to_dict(), **found}}


def exact_positions(model: Any, config: Any) -> None:
    """Scaled rotary frequencies as transformers computes them.

    mlx-lm rounds YaRN's ramp where gpt-oss says `truncate: false`, and takes longrope's long factors for short rows.
    """
    import mlx.core as mx
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type")
    if kind not in ("yarn", "longrope"):
        return
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=1)
    for _, module in model.named_modules():
        if getattr(module, "_freqs", None) is not None and module._freqs.size == len(inverse):
            module._freqs = 1 / mx.array(inverse.numpy())
            setattr(module, "mscale" if hasattr(module, "mscale") else "_scale", float(factor))


def experts_to_mlx(weights: dict[str, Any]) -> dict[str, Any]:
    """gpt-oss as transformers saves it: `gate_up_proj` (E, H, 2 I), gate and up alternating, and `down_proj`
    (E, I, H) become three stacks of (E, out, in). The hub's MXFP4 blocks stay for mlx-lm's own reader."""
    found = {}
    for name, value in weights.items():
        if name.endswith("experts.gate_up_proj"):
            for part, start in (("gate_proj", 0), ("up_proj", 1)):
                found[name.replace("gate_up_proj", f"{part}.weight")] = value[
                    ..., start::2
                ].swapaxes(-1, -2)
        elif name.endswith("experts.down_proj"):
            found[f"{name}.weight"] = value.swapaxes(-1, -2)
        elif name.endswith("experts.gate_up_proj_bias") and name.removesuffix("_bias") in weights:
            for part, start in (("gate_proj", 0), ("up_proj", 1)):
                found[name.replace("gate_up_proj_bias", f"{part}.bias")] = value[..., start::2]
        elif name.endswith("experts.down_proj_bias") and name.removesuffix("_bias") in weights:
            found[name.replace("_bias", ".bias")] = value
        else:
            found[name] = value
    return found


def experts_to_transformers(weights: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `experts_to_mlx`."""
    import mlx.core as mx

    found = {}
    for name, value in weights.items():
        if ".experts.gate_proj." in name:
            other = weights[name.replace("gate_proj", "up_proj")]
            both = mx.stack([value, other], axis=2).flatten(
                1, 2
            )  # of (E, I, …): gate and up alternate
            found[
                re.sub(
                    r"gate_proj\.(weight|bias)$",
                    lambda m: "gate_up_proj" + "_bias" * (m[1] == "bias"),
                    name,
                )
            ] = both.swapaxes(-1, -2) if name.endswith("weight") else both
        elif ".experts.down_proj." in name:
            weight = name.endswith("weight")
            found[re.sub(r"\.(weight|bias)$", "" if weight else "_bias", name)] = (
                value.swapaxes(-1, -2) if weight else value
            )
        elif ".experts.up_proj." not in name:
            found[name] = value
    return found


def quantize(model: Any) -> dict[str, Any]:
    """To 4 bits in groups with a scale and an offset each (affine); returns what MLX's settings say of it.

    Every layer that has a quantized form, as mlx-lm's own converter does; one whose width no group divides stays whole.
    """
    import mlx.nn as nn

    rule, said = (
        getattr(model, "quant_predicate", None),
        {"group_size": GROUPS[0], "bits": 4, "mode": "affine"},
    )

    def choose(path: str, module: Any) -> bool | dict:
        if not hasattr(module, "to_quantized"):
            return False
        group = next((g for g in GROUPS if module.weight.shape[-1] % g == 0), None)
        wanted = rule(path, module) if rule else True
        if not wanted or not group:
            return False
        chosen = (
            {"bits": 4, "mode": "affine"}
            | (wanted if isinstance(wanted, dict) else {})
            | {"group_size": group}
        )
        if chosen != {k: said[k] for k in chosen}:
            said[path] = chosen
        return chosen

    nn.quantize(model, class_predicate=choose)
    return said


def base_to_mlx(model: str, target: Path | str, *, four_bit: bool = False) -> Path:
    """A base of transformers' format in MLX's, for mlx-lm's tools; with `four_bit` a quarter of the size of bf16."""
    from mlx_lm import utils

    folder, target = files(model), Path(target)
    try:
        found, settings = read_base(folder, base_model.config(model))
    except (ValueError, OSError, KeyError) as error:
        raise base_model.unusable(model, error) from None
    if four_bit:
        if "quantization" in settings:
            raise LorakitError(f"{model}: its weights are quantized already; leave the 4 bits out")
        settings["quantization"] = settings["quantization_config"] = quantize(found)
    with whole(target) as part:
        utils.save_model(part, found)
        utils.save_config(settings, part / "config.json")
        _tokenizer(folder, part)
    return target


def base_to_transformers(model: str, target: Path | str) -> Path:
    """A base of MLX's format in transformers'; quantized weights become what they stand for.

    Raises `LorakitError` where transformers' model of this kind has other tensors.
    """
    import mlx.core as mx
    import torch
    from mlx.utils import tree_flatten
    from mlx_lm import utils
    from transformers import AutoModelForCausalLM

    folder, config, target = files(model), base_model.config(model), Path(target)
    try:
        found, settings = read_base(folder, config)
    except (ValueError, OSError, KeyError) as error:
        raise base_model.unusable(model, error) from None
    if "quantization" in settings:
        utils.dequantize_model(found)
    weights = experts_to_transformers(dict(tree_flatten(found.parameters())))
    for name in ("quantization", "quantization_config"):
        vars(config).pop(name, None)
    with torch.device("meta"):
        expected = {
            n: tuple(t.shape)
            for n, t in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    if wrong := sorted(
        n
        for n in weights.keys() | expected.keys()
        if n not in weights or expected.get(n) != tuple(weights[n].shape)
    ):
        raise LorakitError(
            f"{model}: '{wrong[0]}' has no counterpart in transformers' {config.model_type} "
            f"({len(wrong)} tensors in all), so this base cannot be converted"
        )
    with whole(target) as part:
        part.mkdir(parents=True)
        mx.save_safetensors(str(part / "model.safetensors"), weights, {"format": "pt"})
        config.save_pretrained(part)
        _tokenizer(folder, part)
    return target


def _tokenizer(source: Path, target: Path) -> None:
    for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
