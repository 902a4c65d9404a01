"""What is trained in a model: PEFT's adapter on its target modules, and the heads that a classifier gets anew."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lorakit.common.errors import LorakitError
from lorakit.engines.protocol import adapter_refused
from lorakit.engines.torch import variants
from lorakit.machine.packages import tolerate_old_packages
from lorakit.models import spec as models
from lorakit.run import Run


def with_adapter(
    model: Any, run: Run, spec: Any, adapter: str | Path | None, heads: Sequence[str] = ()
) -> Any:
    """`heads`: modules that are trained whole beside the adapter, and saved with it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    tolerate_old_packages()

    if adapter:
        try:
            for name in (
                "adapter_config.json",
                "adapter_model.safetensors",
            ):  # else PEFT would ask the hub for it
                if not (Path(adapter) / name).is_file():
                    raise FileNotFoundError(f"{name} is missing")
            return PeftModel.from_pretrained(model, str(adapter))
        except Exception as error:  # PEFT checks little: damaged files raise almost anything
            raise adapter_refused(adapter, run.model, error) from None
    targets = targeted(model, run, spec)
    if run.trains_embeddings:
        heads = [*heads, *variants.embeddings_of(model)]
    experts = (
        []
        if isinstance(targets, str)
        else [t for t in targets if any(models.stacked([t], n) for n in stacks(model))]
    )
    if experts and (run.dropout or run.use_dora):
        raise LorakitError(
            f"target_modules={targets!r} and dropout={run.dropout:g}, use_dora={run.use_dora}: the "
            f"adapter of stacked experts has neither; leave those out, or '{experts[0]}'"
        )
    # Looked up by its configuration: to go through all values would import every model there is.
    causal = type(model) is MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    config = LoraConfig(
        r=run.rank,
        lora_alpha=run.alpha,
        lora_dropout=run.dropout,
        use_rslora=run.use_rslora,
        use_dora=run.use_dora,
        target_modules=[t for t in targets if t not in experts] if experts else targets,
        task_type="CAUSAL_LM" if causal else None,
        target_parameters=experts or None,
        exclude_modules=excluded(targets, [*heads, *frozen_encoders(model)]),
        modules_to_save=list(heads) or None,
        **variants.options(run),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # saved apart
            return get_peft_model(model, config)  # adapters are fp32
    except ValueError as error:
        raise LorakitError(f"target_modules={targets!r}: {error}") from None
    except RuntimeError as error:
        raise LorakitError(
            f"rank={run.rank}: the adapters cannot be made ({str(error).splitlines()[0]}); lower rank"
        ) from None


def targeted(model: Any, run: Run, spec: Any) -> str | list[str]:
    """The layers and stacked experts that get an adapter. Raises `LorakitError` for one that the model lacks."""
    targets = spec.target_modules if run.target_modules == "auto" else run.target_modules
    if isinstance(targets, str):
        return targets
    names = [name for name, _ in model.named_modules()] + stacks(model)
    lost = [t for t in targets if not any(n == t or n.endswith("." + t) for n in names)]
    if lost:
        linear = sorted(
            {
                n.rsplit(".", 1)[-1]
                for n, m in model.named_modules()
                if isinstance(m, torch.nn.Linear)
            }
        )
        raise LorakitError(
            f"target_modules: {run.model} has no layer '{lost[0]}'; it has {', '.join(linear)}"
        )
    return list(targets)


def stacks(model: Any) -> list[str]:
    """The matrices of a model that hold one for each expert: (E, in, out)."""
    return [
        name for name, p in model.named_parameters() if p.ndim == 3 and not name.endswith("weight")
    ]


def frozen_encoders(model: Any) -> list[str]:
    """The parts of a model of words that see or hear for it: frozen, and never in training mode."""
    kinds = tuple(
        type(part)
        for name in ("vision_config", "audio_config")
        if (part := getattr(model.config, name, None)) is not None
    )
    found = [
        name
        for name, part in model.named_modules()
        if name and isinstance(part, PreTrainedModel) and kinds and isinstance(part.config, kinds)
    ]
    return [name for name in found if not inside(name, found)]


def excluded(targets: str | list[str], parts: list[str]) -> str | None:
    """What gets no adapter, as a regular expression; a regular expression of the user's says itself what does."""
    if not parts or (isinstance(targets, str) and targets != "all-linear"):
        return None
    return "|".join(rf"{re.escape(part)}(\..*)?" for part in parts)


def new_heads(kind: Any, config: Any) -> list[str]:
    """The modules that a classifier has beside its base: trained whole, and kept out of quantization."""
    with torch.device("meta"):
        model = kind.from_config(config)
    return [
        name
        for name, part in model.named_children()
        if name != model.base_model_prefix and next(part.parameters(), None) is not None
    ]


def beside_layers(missing: Sequence[str], heads: list[str]) -> list[str]:
    """Modules that the files lack and that stand beside the layers, as BERT's pooler does: new as the head is."""
    names = {key.rpartition(".")[0] for key in missing if not inside(key, heads)}
    return sorted(name for name in names if not re.search(r"\.\d+\.", name + "."))


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor is one of these modules'."""
    return any(name.startswith(f"{module}.") for module in modules)
