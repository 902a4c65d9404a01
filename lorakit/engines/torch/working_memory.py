"""What a micro-batch needs in memory, counted on the model itself with tensors that have no content."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lorakit.engines import quantization
from lorakit.engines.torch import kernels
from lorakit.engines.torch.adapter import new_heads, with_adapter
from lorakit.engines.torch.engine import DTYPES
from lorakit.engines.torch.kernels import attention, half_products, simulate
from lorakit.engines.torch.kernels.device import Capability, planned_for
from lorakit.engines.torch.layers import recompute
from lorakit.engines.torch.memory import packed, padded
from lorakit.models import base_model, served
from lorakit.run import Run

HEAP = 1.05  # what glibc's heap takes for each byte alive (bench/predicted.py)


def working_bytes(run: Run, tokens: int, card: Capability | None = None) -> int:
    """Bytes alive at the worst moment of a micro-batch beside weights, trained gradients and optimizer.

    Found by going through forward and backward of this very model with tensors that have no content, by the kernels
    that a card of this compute capability gets, else by a CPU's. Raises `NotImplementedError` for a model whose way
    depends on its values.
    """
    config, dtype = base_model.sizes(run.model), DTYPES[run.precision]
    kind = served.maker(run.task, config, run.model)
    if getattr(config.get_text_config(), "num_local_experts", None):
        raise NotImplementedError(
            f"{config.model_type}: which expert computes how much depends on the tokens"
        )
    # In the simulation every device is a CPU, and its autocast knows no fp16.
    half = _half_products(run)
    precision = torch.bfloat16 if dtype == torch.float16 and not half else dtype
    autocast = dtype != torch.float32 and not half
    try:
        model = skeleton(run, kind, config, precision)
        bare = model.get_base_model() if run.method == "lora" else model
        simulate.empty(model)
        model.train()
        with (
            planned_for(card),
            simulate.Live(model) as live,
            torch.autocast("cpu", precision, enabled=autocast),
        ):
            with simulate.kept_elsewhere() if run.offload is True else nullcontext():
                total = (packed if kind is AutoModelForCausalLM else padded)(run, bare, tokens)
            total.backward()
    except Exception as error:
        raise NotImplementedError(f"{config.model_type}: {error}") from None
    most = live.most - sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return most if card else int(HEAP * most)


def _half_products(run: Run) -> bool:
    fp16 = base_model.spec(run.model).fp16
    return half_products.asked_for(run.precision, run.method, fp16)


def skeleton(run: Run, kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """The model as it is trained, on the meta device: without weights."""
    way = attention.NAME if kind is AutoModelForCausalLM else None
    with torch.device("meta"):
        model = kind.from_config(
            config, attn_implementation=way, dtype=torch.float32 if run.method == "full" else dtype
        )
    parts = (getattr(model.config, name, None) for name in model.config.sub_configs)
    for part in (model.config, *filter(None, parts)):
        part.use_cache = False  # nothing is generated; recomputed layers warn of a cache
    form = quantization.get(run.quantization) if run.quantization != "auto" else None
    if form and form.convert:
        form.convert(model, torch.device("cpu"), base_model.spec(run.model).unquantized)
    if _half_products(run):
        half_products.install(model)
    if run.method == "lora":
        heads = new_heads(kind, config) if run.task.startswith("classify") else []
        model = with_adapter(model, run, base_model.spec(run.model), None, heads)
        kernels.install(model, run.fake_quantization)
    again = run.gradient_checkpointing
    if again and again != "auto":
        recompute(model, again)
    return model
