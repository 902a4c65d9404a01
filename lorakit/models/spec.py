"""Models that lorakit knows by name, a file per family, `SPEC` in it. Any other hub id or folder works too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from lorakit.common import registry

# The layers of a gated block, as most families call them.
GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Spec:
    """What a model needs beyond its own configuration. Of a family, `{size}` in a text stands for one of `sizes`."""

    path: str = ""  # hub id or folder
    name: str = ""  # what a user types; empty: the file's name
    licence: str = "see the model's page"
    target_modules: tuple[str, ...] | str = (
        "all-linear"  # layers that get an adapter: training must change it
    )
    unquantized: tuple[
        str, ...
    ] = ()  # layers that a quantized base keeps whole, in transformers' own patterns
    stored: str = (
        ""  # how the hub's weights are quantized already: no second quantization can load them
    )
    fp16: bool = True  # False where activations overflow half precision
    drops_last: bool = (
        False  # its `generate` names the end token itself and drops a prompt's last one
    )
    source: str = ""  # where these facts are from
    template: str = ""  # its chat template in lorakit/assets/chat_templates/
    config: dict[str, Any] = field(
        default_factory=dict
    )  # of config.json, what decides architecture and sizes
    small: dict[str, Any] = field(
        default_factory=dict
    )  # written over it for rehearsal, see `shrunk`
    reader: Callable | None = (
        None  # (tokenizer, small config) -> a small processor; fits both to each other
    )
    sizes: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # of a family: size -> its part of `config`
    packages: dict[str, str] = field(
        default_factory=dict
    )  # of a family: size -> the Python package that holds it as a GGUF file
    package: str = ""  # of a member: the same

    def each(self) -> dict[str, Spec]:
        """The members of a family by the names that users type."""
        return {
            self.name.format(size=size.lower()): replace(
                self,
                name=self.name.format(size=size.lower()),
                path=self.path.format(size=size),
                config=merged(self.config, config),
                sizes={},
                packages={},
                package=self.packages.get(size, ""),
            )
            for size, config in self.sizes.items()
        }


def known() -> dict[str, Spec]:
    """Every name that a user can type -> what is known of that model."""
    return _known(tuple(registry.names("models")))


@lru_cache(maxsize=4)
def _known(files: tuple[str, ...]) -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for file, module in registry.modules("models").items():
        found |= module.SPEC.each() or {module.SPEC.name or file: module.SPEC}
    return found


def family(config: dict[str, Any], path: str) -> Spec:
    """What holds for any model of this configuration, saved under `path`."""
    kinds = config.get("model_type"), (config.get("text_config") or {}).get("model_type")
    members = [
        s for kind in kinds if kind for s in known().values() if s.config.get("model_type") == kind
    ]
    if not members:
        return Spec(path=path)
    held = quantized(config)
    like = next((s for s in members if s.stored == held), replace(members[0], stored=""))
    return replace(
        like, path=path, name="", licence=Spec.licence, config={}, source=f"as {like.name}"
    )


def quantized(config: dict[str, Any]) -> str:
    """How its weights are stored by what config.json says, in the words of `Spec.stored`; "" for 16 bits and more."""
    said = config.get("quantization_config") or {}
    if said.get("quant_method") == "bitsandbytes":
        return said.get("bnb_4bit_quant_type", "fp4") if said.get("load_in_4bit") else "int8"
    return said.get("quant_method") or said.get("mode", "")  # the second is MLX's


def adapts(target_modules: str | Sequence[str], layer: str) -> bool:
    """Whether a linear layer gets an adapter, by PEFT's own rule; `all-linear` means all but the head."""
    if isinstance(target_modules, str):
        return target_modules == "all-linear" or re.fullmatch(target_modules, layer) is not None
    return any(layer == target or layer.endswith(f".{target}") for target in target_modules)


def stacked(target_modules: str | Sequence[str], weight: str) -> bool:
    """Whether a matrix of stacked experts gets an adapter: where a list names it, as `experts.down_proj` does."""
    return not isinstance(target_modules, str) and adapts(target_modules, weight)


def image_processor(kind: str, **settings: Any) -> Any:
    """A processor of pictures by the name of its class, computed by what is installed: torchvision or PIL."""
    import json
    import tempfile
    from pathlib import Path

    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        content = {"image_processor_type": kind, **settings}
        (Path(folder) / "preprocessor_config.json").write_text(
            json.dumps(content), encoding="utf-8"
        )
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def name_tokens(tokenizer: Any, tokens: dict[str, str]) -> None:
    """Adds special tokens under names that processors ask for: image_token, …"""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(tokens.values())}, replace_extra_special_tokens=False
    )
    tokenizer._set_model_specific_special_tokens(tokens)


def merged(one: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both, `over` where they differ, dictionaries inside alike."""
    return one | {
        k: merged(one[k], v) if isinstance(v, dict) and isinstance(one.get(k), dict) else v
        for k, v in over.items()
    }


def shrunk(config: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """A configuration made small: as many query heads share a key head as before, the rest as `small` says."""
    out = merged(config, small)
    text = out.get("text_config") or out
    if "num_attention_heads" not in text:
        return out
    shared = text["num_attention_heads"] // (
        text.get("num_key_value_heads") or text["num_attention_heads"]
    )
    keys = 1 if shared > 2 else 2
    text["num_attention_heads"] = keys * shared
    if text.get("num_key_value_heads"):
        text["num_key_value_heads"] = keys
    if "head_dim" not in text and text["hidden_size"] % text["num_attention_heads"]:
        text["hidden_size"] = 16 * text["num_attention_heads"]
    if "out_hidden_size" in (out.get("vision_config") or {}):
        out["vision_config"]["out_hidden_size"] = text["hidden_size"]
    return out
