"""How a model is loaded: weights, adapter, kernels, device."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    # Packs are of ever new lengths: segments that grow leave no holes behind. Read when a card is first used.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from lorakit.common import hub
from lorakit.common.errors import LorakitError
from lorakit.engines import quantization
from lorakit.engines.protocol import decided
from lorakit.engines.torch import kernels
from lorakit.engines.torch.adapter import beside_layers, inside, new_heads, stacks, with_adapter
from lorakit.engines.torch.engine import DTYPES, TorchEngine
from lorakit.engines.torch.kernels import attention, fused, half_products
from lorakit.engines.torch.layers import recompute, split_layers
from lorakit.engines.torch.out_of_memory import out_of_memory, while_loading
from lorakit.machine import distributed, hardware
from lorakit.machine.distributed import World
from lorakit.models import base_model, locate, served
from lorakit.models.merge import quietly
from lorakit.run import Run

SHOWN_FROM = 2e9  # bytes of weights from which loading them has a progress bar


def device(world: World) -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", world.local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' warnings about missing keys, which `load` judges, and about deprecations."""
    # bitsandbytes misses a kernel on a CPU that is not used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(before)


@while_loading()
@quiet_transformers()
def load(
    run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()
) -> TorchEngine:
    """The base with a new adapter to train, or with a saved one (`adapter`) to ask; of `classes` with a new head."""
    run = decided(run)
    spec, world, idle = base_model.spec(run.model), distributed.join(), hardware.resident()
    where = device(world)
    hardware.return_large_blocks()
    config = base_model.labelled(base_model.config(run.model), classes)
    kind = served.maker(run.task, config, run.model)
    heads = new_heads(kind, config) if classes else []
    packable = kind is AutoModelForCausalLM and packs(config)
    tokenizer, processor, _ = base_model.reader(run.model, config, run.chat_template)
    torch.manual_seed(run.seed)
    form = quantization.get(run.quantization)
    assert form.load_options is not None  # one that this engine serves
    options = form.load_options(DTYPES[run.precision], [*spec.unquantized, *heads])
    shard = run.shard and world.size > 1
    placed = bool(options) or (where.type == "cuda" and not shard)
    if placed:  # tensor by tensor, so that the host never holds the model
        options["device_map"] = {"": where}
    source = str(adapter) if adapter and run.method == "full" else base_model.path(run.model)
    model, missing = base(
        run, source, kind, config, bool(classes), attention_of(kind, packable), options
    )
    if classes:
        heads += beside_layers(missing, heads)
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer else None
    require_tensors(source, missing, heads)
    if not placed and not shard:
        model.to(where)
    for module in model.modules():
        # An evaluation on avx512_bf16 CPUs repacks 4-bit weights in place; gradients are wrong from then on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    check(run, model, tokenizer)
    check_fake_quantization(run, kind, model)
    notes: dict[str, tuple[Any, str]] = {}
    if form.convert:
        notes[run.quantization] = form.convert(model, where, [*spec.unquantized, *heads])
    if half_products.asked_for(run.precision, run.method, spec.fp16):
        notes["products"] = half_products.described(model)
    if run.method == "lora":
        model = with_adapter(model, run, spec, adapter, heads)
        notes |= install_kernels(model, run.fake_quantization)
    notes |= compile_passes(run, where)
    again = run.gradient_checkpointing
    if again and again != "auto":  # not before: PEFT would ask for gradients of the layers' inputs
        recompute(model, again)
    if shard:
        split_layers(model, where)
    return TorchEngine(
        model, tokenizer, run, where, packable, world, idle, notes, processor, len(classes)
    )


def attention_of(kind: Any, packable: bool) -> str | None:
    """Which attention the model gets; what is never packed chooses its own, tower by tower."""
    if packable:
        return attention.NAME
    return "eager" if kind is AutoModelForCausalLM else None


def base(
    run: Run,
    source: str,
    kind: Any,
    config: Any,
    classifies: bool,
    attention_name: str | None,
    options: dict[str, Any],
) -> tuple[Any, list[str]]:
    """(the model with its weights, names of the tensors that its files lack)."""
    # Whole models train in fp32 under autocast; a frozen base is kept in the computing precision.
    options = {
        "dtype": torch.float32 if run.method == "full" else DTYPES[run.precision],
        "attn_implementation": attention_name,
        "use_safetensors": None if run.pickled_weights else True,
        "local_files_only": hub.kept_only(source),
        **options,
    }
    if source == base_model.path(run.model):
        options["config"] = config  # known already
    if classifies:
        options |= {"config": config, "ignore_mismatched_sizes": True}
    try:
        with contextlib.nullcontext() if _takes_long(source) else quietly():
            model, loaded = kind.from_pretrained(
                source, output_loading_info=True, trust_remote_code=False, **options
            )
    except Exception as error:  # transformers checks little: damaged files raise almost anything
        if out_of_memory(error):
            raise
        raise locate.unusable(run.model, error) from None
    require_finite(model, source)
    return model, list(loaded["missing_keys"])


def _takes_long(source: str) -> bool:
    """Whether loading these files is worth a progress bar."""
    return sum(file.stat().st_size for file in Path(source).glob("*.safetensors")) > SHOWN_FROM


def require_finite(model: Any, source: str) -> None:
    """Raises `LorakitError` for files with a weight that is no finite number."""
    for name, weight in model.named_parameters():
        if (
            weight.is_floating_point()
            and weight.device.type != "meta"
            and not weight.isfinite().all()
        ):
            raise LorakitError(
                f"'{name}' holds numbers that are not finite",
                setting="model",
                value=source,
                where=source,
                cure="download the model again, or name another one",
            )


def require_tensors(source: str, missing: Sequence[str], heads: Sequence[str]) -> None:
    """Raises `LorakitError` when the files lack tensors beside those of new heads."""
    if lost := sorted(k for k in missing if not inside(k, heads)):
        raise LorakitError(
            f"{source}: the files lack {len(lost)} of the model's tensors, which would be random: "
            f"'{lost[0]}', …",
            setting="model",
            value=source,
            cure="download it again, or name the model that they belong to",
        )


def check_fake_quantization(run: Run, kind: Any, model: Any) -> None:
    """Raises `LorakitError` for a model whose weights cannot be rounded as an export would."""
    if run.fake_quantization != "none" and (kind is not AutoModelForCausalLM or stacks(model)):
        raise LorakitError(
            f"fake_quantization={run.fake_quantization!r}: only language models without stacked experts "
            f"are rounded as their export will be, and {run.model} is another",
            setting="fake_quantization",
            value=run.fake_quantization,
            cure="leave it out",
        )


def install_kernels(model: Any, form: str) -> dict[str, tuple[Any, str]]:
    """Replaces modules by kernels that compute the same; `form`: what weights are rounded to, or `none`."""
    notes: dict[str, tuple[Any, str]] = {
        "kernels": (kernels.install(model, form), "they compute what the model's own modules do")
    }
    if form != "none":
        notes["fake_quantization"] = (
            form,
            "asked for; in training and in scoring every W + s B A computes as the "
            "export will round it, and so do embeddings and head",
        )
    return notes


def compile_passes(run: Run, where: torch.device) -> dict[str, tuple[Any, str]]:
    """Switches torch.compile for the passes between products."""
    compiled = fused.switch(run.compile and run.method == "lora", where)
    if not run.compile:
        return {}
    if run.method == "full":
        return {"compile": (False, "method=full trains the model's own modules")}
    return {"compile": compiled}


def packs(config: Any) -> bool:
    """Whether this model's attention may be ours: plain scores, not capped; sinks may stand beside them."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or getattr(config, "attn_logit_softcapping", None) is not None:
        return False
    return kind._supports_sdpa or "s_aux=" in inspect.getsource(sys.modules[kind.__module__])


def check(run: Run, model: Any, tokenizer: Any) -> None:
    """Raises `LorakitError` when rows of this run cannot be this model's."""
    if tokenizer is None:
        return
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and run.max_length > limit:
        raise LorakitError(
            f"max_length={run.max_length} is longer than the {limit} positions of {run.model}"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise LorakitError(
            f"{run.model}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; they do not "
            "belong together"
        )
