"""Bases as transformers saves them and as mlx-lm does, which names tensors alike but for stacked experts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.models import base_model, locate

GROUPS = (64, 32)  # weights that share a scale: the first that divides a layer's width


def of_transformers(folder: Path) -> bool:
    """MLX's own writer names itself in the header of every file."""
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as content:
            return (content.metadata() or {}).get("format", "pt") == "pt"
    return True


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
        raise locate.unusable(model, error) from None


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
        raise locate.unusable(model, error) from None
    if four_bit:
        if "quantization" in settings:
            raise LorakitError(f"{model}: its weights are quantized already; leave the 4 bits out")
        settings["quantization"] = settings["quantization_config"] = quantize(found)
    with atomic_write(target) as part:
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
        raise locate.unusable(model, error) from None
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
    with atomic_write(target) as part:
        part.mkdir(parents=True)
        mx.save_safetensors(str(part / "model.safetensors"), weights, {"format": "pt"})
        config.save_pretrained(part)
        _tokenizer(folder, part)
    return target


def _tokenizer(source: Path, target: Path) -> None:
    for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
