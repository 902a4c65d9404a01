"""How a model of mlx-lm's is loaded, and how adapters find their layers in it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lorakit.common import hub, registry
from lorakit.common.errors import LorakitError
from lorakit.engines import quantization
from lorakit.engines.mlx import adapters, bases
from lorakit.engines.mlx.engine import MLXEngine
from lorakit.engines.mlx.tensors import transformers_name
from lorakit.machine import distributed
from lorakit.models import base_model, locate, reading
from lorakit.models import spec as models
from lorakit.run import Run

# Settings that this engine does not serve: setting -> (values that it does, the cure).
SERVED: dict[str, tuple[tuple, str]] = {
    "method": (("lora",), "use method=lora"),
    "use_dora": ((False,), "leave use_dora out"),
    "optimizer": (("adamw",), "use optimizer=adamw"),
    "precision": (("fp32", "bf16"), "use bf16 or fp32"),
    "shard": ((False,), "leave shard out"),
    "fake_quantization": (("none",), "leave fake_quantization out"),
}


@lru_cache(maxsize=32)
def unlike(path: str, sizes: str, targets: tuple[str, ...] | str) -> str:
    """Why adapters for transformers' model find no place in mlx-lm's: both are made, without weights."""
    from transformers import AutoConfig

    kind = ""
    try:
        config = (
            AutoConfig.for_model(**json.loads(sizes))
            if json.loads(sizes)
            else base_model.config(path)
        )
        given, kind = config.to_dict() | bases.arguments(config), config.model_type
        from mlx_lm import utils

        model, settings = utils._get_classes(given)
        there = adaptable(model(settings.from_dict(given)))
        names = [name for name in linear_layers(config) if models.adapts(targets, name)]
    except (
        Exception,
        SystemExit,
    ) as error:  # mlx-lm checks little, and one of its files ends the process
        return f"mlx-lm cannot make this {kind} ({hub.reason(error)})"
    lost = next(
        (name for name in names if mlx_name(name, there) is None),
        None if names else "any linear layer",
    )
    return f"mlx-lm's {kind} lacks {lost}" if lost else ""


def adaptable(model: Any) -> dict[str, str]:
    """transformers' name of every layer that can get an adapter -> mlx-lm's."""
    return {
        transformers_name(path): path
        for path, m in model.named_modules()
        if hasattr(m, "to_quantized") or hasattr(m, "bits")
    }


def load(run: Run, *, adapter: str | Path | None = None) -> MLXEngine:
    """The base with a new adapter to train, or with a saved one (`adapter`) to ask."""
    refuse_settings(run)
    config, tokenizer = base_model.config(run.model), reading.tokenizer(run.model)[0]
    if run.chat_template:
        reading.with_template((tokenizer, None, []), run.chat_template, run.model)
    text = config.get_text_config()
    folder = bases.files(run.model)
    try:
        model, settings = bases.read_base(folder, config)
    except OSError as error:
        raise locate.unusable(run.model, error) from None
    except (
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        SystemExit,
    ) as error:  # see `unlike`
        raise LorakitError(
            f"{run.model}: mlx-lm cannot load this {text.model_type} ({hub.reason(error).rstrip('.')}). "
            "Leave engine out, or, where its files may be cut, download it again"
        ) from None
    stored = settings.get("quantization")
    form = quantization.get("none" if run.quantization == "auto" or stored else run.quantization)
    assert form.quantize_mlx is not None  # `refuse_settings` has looked
    form.quantize_mlx(model)
    model.set_dtype({"fp32": mx.float32, "bf16": mx.bfloat16}[run.precision])
    model.freeze()
    refuse(run, text, len(tokenizer), model)
    saved = adapters.read_peft(Path(adapter)) if adapter else None
    layers = with_adapter(model, run, config, saved)
    model.eval()
    mx.eval(model.parameters())
    if mx.metal.is_available():  # else macOS may page weights out between updates
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    engine = MLXEngine(model, layers, tokenizer, run, text)
    if stored:
        kind = f"{stored['bits']} bits ({stored.get('mode', 'affine')}, groups of {stored['group_size']})"
        engine.notes["quantization"] = ("none", f"its weights are stored in {kind} already")
    return engine


def refuse_settings(run: Run) -> None:
    """Raises `LorakitError` for settings that this engine does not serve."""
    forms = [n for n in registry.names("quantization") if quantization.get(n).quantize_mlx]
    served = SERVED | {"quantization": (("auto", *forms), f"use {' or '.join(forms)}")}
    for name, (values, cure) in served.items():
        value = getattr(run, name)
        if value not in values:
            raise LorakitError(
                f"{name}={value!r} is not served by engine={run.engine!r}",
                setting=name,
                value=value,
                cure=f"{cure}, or leave engine out",
            )
    if distributed.join().size > 1:
        raise LorakitError(
            f"engine={run.engine!r} serves one process", setting="processes", cure="leave it out"
        )


def refuse(run: Run, text: Any, tokens: int, model: Any) -> None:
    """Raises `LorakitError` for rows and tokenizers that the model has no room for."""
    from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

    limit, window = (
        getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")
    )
    if limit and run.max_length > limit:
        raise LorakitError(
            f"max_length={run.max_length} is longer than the {limit} positions of {run.model}"
        )
    if tokens > text.vocab_size:
        raise LorakitError(
            f"{run.model}: the tokenizer has {tokens} tokens, the model {text.vocab_size}; they do not "
            "belong together"
        )
    windowed = any(isinstance(cache, RotatingKVCache) for cache in make_prompt_cache(model))
    if window and run.max_length > window and not windowed:
        raise LorakitError(
            f"max_length={run.max_length} is longer than the window of {window} tokens that "
            f"{run.model} attends to, and mlx-lm's model has none; lower max_length to {window}, or "
            "leave engine out"
        )


def with_adapter(
    model: Any, run: Run, config: Any, saved: tuple[dict, dict] | None
) -> dict[str, Any]:
    """Puts adapters in place; transformers' name of each layer -> its `Lora`."""
    from mlx.utils import tree_unflatten

    from lorakit.engines.mlx.lora import Lora

    linear, places = linear_layers(config), adaptable(model)
    spec = base_model.spec(run.model)
    wanted = spec.target_modules if run.target_modules == "auto" else run.target_modules
    names = list(saved[1]) if saved else [name for name in linear if models.adapts(wanted, name)]
    lost = (
        []
        if saved or isinstance(wanted, str)
        else [t for t in wanted if not any(models.adapts([t], n) for n in linear)]
    )
    if lost or not names:
        present = ", ".join(sorted({n.rpartition(".")[2] for n in linear}))
        none = f"has no layer '{lost[0]}'" if lost else "has no such layer"
        raise LorakitError(f"target_modules={wanted!r}: {run.model} {none}; it has {present}")
    if unknown := [n for n in names if mlx_name(n, places) is None]:
        raise LorakitError(
            f"{run.model}: '{unknown[0]}' gets an adapter and is no layer of mlx-lm's model"
            + (
                ". Was the adapter made for another base?"
                if saved
                else "; name other target_modules"
            )
        )
    rng, modules = np.random.default_rng(run.seed), dict(model.named_modules())
    settings = (
        saved[0]
        if saved
        else {"r": run.rank, "lora_alpha": run.alpha, "use_rslora": run.use_rslora}
    )
    layers = {
        name: Lora(
            modules[mlx_name(name, places)],
            int(settings["r"]),
            adapters.scale(settings),
            run.dropout,
            rng,
        )
        for name in names
    }
    model.update_modules(
        tree_unflatten([(mlx_name(name, places), layer) for name, layer in layers.items()])
    )
    for name, pair in (saved[1] if saved else {}).items():
        layer = layers[name]
        if (pair["A"].shape, pair["B"].shape) != (layer.lora_A.shape, layer.lora_B.shape):
            raise LorakitError(
                f"the adapter's '{name}' has the shapes {pair['A'].shape} and {pair['B'].shape}, "
                f"expected {layer.lora_A.shape} and {layer.lora_B.shape}. Was it made for another base?"
            )
        layer.lora_A, layer.lora_B = (mx.array(pair[k].astype(np.float32)) for k in "AB")
    return layers


def mlx_name(name: str, places: dict[str, str]) -> str | None:
    """mlx-lm's name of a layer; a model of several media has its text one level deeper in transformers too."""
    return places.get(name) or places.get(name.replace("model.language_model.", "model."))


def linear_layers(config: Any) -> list[str]:
    """What PEFT would see: the names of transformers' linear layers but the head, from its skeleton."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    head = skeleton.get_output_embeddings()
    return [
        n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    ]
