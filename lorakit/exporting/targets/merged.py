"""The adapter merged into the base's unquantized weights, as transformers saves a model (safetensors).

W + s B A is computed in fp32 layer by layer and cast afterwards: in bf16 the sum itself would lose the update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError, first_line
from lorakit.exporting.round_trip import DEFAULT_BOUNDS, Source
from lorakit.machine.packages import tolerate_old_packages
from lorakit.models import base_model

USE, LIBRARY, LABELS = "{kind}.from_pretrained({name!r})", "transformers", True
TYPES = ("bf16", "fp16", "fp32")
BOUNDS = {
    "bf16": DEFAULT_BOUNDS["16"],
    "fp16": DEFAULT_BOUNDS["16"],
    "fp32": DEFAULT_BOUNDS["fp32"],
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def room(weights: int, kind: str) -> tuple[float, float]:
    return 1.05 * BYTES[kind] * weights, 1.3 * BYTES[kind] * weights


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def export(source: Source, folder: Path, kind: str) -> list[str]:
    model = merged(source, kind)
    model.save_pretrained(folder)
    (source.tokenizer or source.processor).save_pretrained(folder)
    return []


def merged(source: Source, kind: str) -> Any:
    """transformers' model with the adapter in its weights. Raises `LorakitError` when they do not belong together."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    model = untuned(source, kind)
    if source.run.method == "lora":
        model = with_update(model, source.saved, dtype, source.run.model)
    model = model.to(dtype).eval()
    if not source.classes:
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        model.generation_config.eos_token_id = sorted(
            {*ends, *source.meta["stop_ids"]}
        )  # where an answer ends
    lost = next((n for n, p in model.named_parameters() if not p.isfinite().all()), None)
    if lost:
        raise LorakitError(
            f"{source.run.model}: '{lost}' leaves the range of {kind}; take --type bf16 or fp32"
        )
    return model


def untuned(source: Source, kind: str) -> Any:
    """The base without a quantization, in the numbers that it is stored in or in fp32; after `method: full` the model.

    A classifier's head is a new one, which the adapter brings.
    """
    import torch

    run = source.run
    where = base_model.path(run.model) if run.method == "lora" else str(source.saved)
    config, options = base_model.config(run.model), unpacked(run.model)
    if source.classes:
        options |= {
            "config": base_model.labelled(config, source.classes),
            "ignore_mismatched_sizes": True,
        }
        config.pad_token_id = source.tokenizer.pad_token_id if source.tokenizer else None
    try:
        return base_model.maker(source.meta["task"], config, run.model).from_pretrained(
            where,
            dtype=torch.float32 if kind == "fp32" else "auto",
            trust_remote_code=False,
            **options,
        )
    except Exception as error:  # damaged files raise almost anything
        raise base_model.unusable(where, error) from None


def unpacked(model: str) -> dict[str, Any]:
    """What makes transformers load weights that are stored in a few bits as plain numbers."""
    stored = getattr(base_model.config(model), "quantization_config", None)
    if not stored:
        return {}
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    if str(getattr(method, "value", method)) != "mxfp4":
        raise LorakitError(
            f"{model}: its weights are stored in {method}, and there are none without; name the "
            "unquantized model that it was made from, and train on that"
        )
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def with_update(model: Any, adapter: Path, dtype: Any, name: str) -> Any:
    """The base with W + s B A in the place of W; one layer at a time is in fp32."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    tolerate_old_packages()

    try:
        tuned = PeftModel.from_pretrained(model, str(adapter))
    except Exception as error:  # PEFT checks little
        words = first_line(error)
        raise LorakitError(
            f"{adapter}: the adapter cannot be loaded onto {name}: {words}. Was it made for another "
            "base? Put the run's own adapter back"
        ) from None
    layers = [m for m in tuned.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.get_base_layer().float()
        layer.float().merge()
        if not any(
            x is not layer and x.get_base_layer() is layer.get_base_layer() and not x.merged
            for x in layers
        ):
            layer.get_base_layer().to(dtype)
    return tuned.unload()


def load(folder: Path, source: Source) -> Plain:
    kind = base_model.maker(source.meta["task"], base_model.config(str(folder)), str(folder))
    return Plain(kind.from_pretrained(folder, dtype="auto"))


class Plain:
    """transformers alone, on the CPU."""

    def __init__(self, model: Any):
        self.model = model.eval()

    def generate(self, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
        import torch

        ids = torch.tensor([prompt])
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids or None,
            pad_token_id=0,
        )[0].tolist()
        answer = out[len(prompt) :]
        return answer[:-1] if answer and answer[-1] in stop_ids else answer

    def probabilities(self, given: dict[str, np.ndarray]) -> np.ndarray:
        import torch

        given = {name: torch.from_numpy(value) for name, value in given.items()}
        given = {
            n: v.to(self.model.dtype) if v.is_floating_point() else v for n, v in given.items()
        }
        with torch.no_grad():
            return self.model(**given).logits[0].double().softmax(-1).numpy()

    def nats(self, ids: list[int], targets: list[bool]) -> float:
        import torch

        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        places = [i for i, on in enumerate(targets) if on]
        chosen = logits.log_softmax(-1)[[i - 1 for i in places], [ids[i] for i in places]]
        return -float(chosen.double().sum())
