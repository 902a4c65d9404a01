"""transformers + PEFT + bitsandbytes, on CUDA, MPS and CPU: how a model is loaded, and what it will need."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from lorakit.common.errors import LorakitError
from lorakit.engines.protocol import decided
from lorakit.engines.torch import kernels
from lorakit.engines.torch.adapter import beside_layers, inside, new_heads, stacks, with_adapter
from lorakit.engines.torch.engine import DTYPES, TorchEngine
from lorakit.engines.torch.kernels import attention, fused, simulate
from lorakit.engines.torch.layers import in_fp8, recompute, split_layers
from lorakit.engines.torch.memory import packed, padded, places  # noqa: F401
from lorakit.engines.torch.out_of_memory import out_of_memory, while_loading
from lorakit.machine import distributed, hardware
from lorakit.machine.distributed import Crew
from lorakit.models import base_model
from lorakit.run import Run

BITSANDBYTES = ("nf4", "int8")
SERVES = tuple(base_model.CLASSES)  # objectives and media
ROUNDS = True  # fake_quantization
HEAP = 1.05  # what glibc's heap takes for each byte alive (bench/predicted.py)


def fits(facts: Any, spec: Any) -> str:
    """It serves everywhere that torch runs."""
    if not facts.packages.get("torch"):
        return "torch is not installed"
    if spec.stored == "nf4":
        return f"in {spec.name or spec.path} each expert is a layer of its own, which transformers' model has not"
    lost = next((c for c in facts.cards if not c.served(facts.torch_archs)), None)
    return (
        f"torch {facts.packages['torch']} was not built for {lost.name} ({lost.arch})"
        if lost
        else ""
    )


def suits(facts: Any) -> tuple[int, str]:
    lost = (
        ", what it lacks on the CPU: PYTORCH_ENABLE_MPS_FALLBACK is set"
        if facts.mps_fallback
        else ""
    )
    return 1, f"it serves {facts.device}{lost}"


def forms(facts: Any) -> tuple[str, ...]:
    """What it can keep a frozen base in, the smallest first: on Apple's GPU bitsandbytes computes since 0.50."""
    here = tuple(map(int, re.findall(r"\d+", facts.packages.get("bitsandbytes", "0.0"))[:2]))
    if facts.mps:
        return ("none",) if here < (0, 50) else ("nf4", "int8", "none")
    return (
        "nf4",
        "int8",
        "fp8",
        "none",
    )  # without FP8 units the same numbers, slowly: for rehearsal


def device(crew: Crew) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", crew.local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Inside, others do not say which tensors are new (`load` judges that), nor what they will rename one day."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
        logging.ERROR
    )  # misses a kernel that is not used here
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(before)


@while_loading()
@hushed()
def load(
    run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()
) -> TorchEngine:
    """The base with a new adapter to train, or with a saved one (`adapter`) to ask; of `classes` with a new head."""
    run = decided(run)
    path, spec = base_model.path(run.model), base_model.spec(run.model)
    crew, idle = distributed.join(), hardware.resident()
    dtype, where = DTYPES[run.precision], device(crew)
    if where.type == "cpu":
        hardware.return_large_blocks()
    config = base_model.labelled(base_model.config(run.model), classes)
    kind = base_model.maker(run.task, config, run.model)
    heads = new_heads(kind, config) if classes else []
    packable = kind is AutoModelForCausalLM and packs(config)
    # Whole models train in fp32 under autocast; a frozen base is kept in the computing precision.
    options: dict[str, Any] = {
        "dtype": torch.float32 if run.method == "full" else dtype,
        "attn_implementation": attention.NAME
        if packable
        else "eager"
        if kind is AutoModelForCausalLM
        else None,
    }
    if classes:
        options |= {"config": config, "ignore_mismatched_sizes": True}
    if run.quantization in BITSANDBYTES:
        options |= {
            "quantization_config": quantization(
                run.quantization, dtype, [*spec.unquantized, *heads]
            ),
            "device_map": {"": where},
        }
    tokenizer, processor, _ = base_model.reader(run.model, config)
    torch.manual_seed(run.seed)
    source = str(adapter) if adapter and run.method == "full" else path
    try:
        model, loaded = kind.from_pretrained(
            source, output_loading_info=True, trust_remote_code=False, **options
        )
    except Exception as error:  # transformers checks little: damaged files raise almost anything
        if out_of_memory(error):
            raise
        raise base_model.unusable(run.model, error) from None
    if classes:
        heads += beside_layers(loaded["missing_keys"], heads)
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer else None
    if lost := sorted(k for k in loaded["missing_keys"] if not inside(k, heads)):
        raise LorakitError(
            f"{source}: the files lack {len(lost)} of the model's tensors, which would be random: "
            f"'{lost[0]}', …; download it again, or name the model that they belong to"
        )
    shard = run.shard and crew.size > 1
    if run.quantization not in BITSANDBYTES and not shard:
        model.to(where)
    for module in model.modules():
        # An evaluation on avx512_bf16 CPUs repacks 4-bit weights in place; gradients are wrong from then on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    check(run, model, tokenizer)
    if run.fake_quantization != "none" and (kind is not AutoModelForCausalLM or stacks(model)):
        raise LorakitError(
            f"fake_quantization={run.fake_quantization!r}: only models of words without stacked experts "
            f"are rounded as their export will be, and {run.model} is another; leave it out"
        )
    notes = (
        {"fp8": in_fp8(model, where, [*spec.unquantized, *heads])}
        if run.quantization == "fp8"
        else {}
    )
    if run.method == "lora":
        model = with_adapter(model, run, spec, adapter, heads)
        form = run.fake_quantization
        notes["kernels"] = (
            kernels.install(model, form),
            "they compute what the model's own modules do",
        )
        if form != "none":
            notes["fake_quantization"] = (
                form,
                "asked for; in training and in scoring every W + s B A computes as the "
                "export will round it, and so do embeddings and head",
            )
    compiled = fused.switch(run.compile and run.method == "lora", where)
    if run.compile:
        notes["compile"] = (
            compiled
            if run.method == "lora"
            else (False, "method=full trains the model's own modules")
        )
    if (
        run.gradient_checkpointing
    ):  # not before: PEFT would ask for gradients of what the layers are given
        recompute(model, run.gradient_checkpointing)
    if shard:
        split_layers(model, where)
    return TorchEngine(
        model, tokenizer, run, where, packable, crew, idle, notes, processor, len(classes)
    )


def quantization(name: str, dtype: torch.dtype, whole: Sequence[str]) -> BitsAndBytesConfig:
    """bitsandbytes' settings; the layers named in `whole` keep their precision."""
    skip = list(whole) or None
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skip,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


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


def working(run: Run, tokens: int) -> int:
    """Bytes alive at the worst moment of a micro-batch beside weights, trained gradients and optimizer.

    Found by going through forward and backward of this very model with tensors that have no content. Raises
    `NotImplementedError` for a model whose way depends on its values.
    """
    config, dtype = base_model.sizes(run.model), DTYPES[run.precision]
    kind = base_model.maker(run.task, config, run.model)
    if getattr(config.get_text_config(), "num_local_experts", None):
        raise NotImplementedError(
            f"{config.model_type}: which expert computes how much depends on the tokens"
        )
    # In the simulation every device is a CPU, and its autocast knows no fp16.
    precision = torch.bfloat16 if dtype == torch.float16 else dtype
    try:
        model = skeleton(run, kind, config, precision)
        bare = model.get_base_model() if run.method == "lora" else model
        with simulate.without_content():
            simulate.empty(model)
            model.train()
            with (
                simulate.Live(model) as live,
                torch.autocast("cpu", dtype=precision, enabled=dtype != torch.float32),
            ):
                (packed if kind is AutoModelForCausalLM else padded)(run, bare, tokens).backward()
    except Exception as error:
        raise NotImplementedError(f"{config.model_type}: {error}") from None
    most = live.most - sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return most if torch.cuda.is_available() else int(HEAP * most)


def skeleton(run: Run, kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """The model as it is trained, on the meta device: without weights."""
    way = (
        attention.NAME if kind is AutoModelForCausalLM else None
    )  # what is never packed chooses, tower by tower
    with torch.device("meta"):
        model = kind.from_config(
            config, attn_implementation=way, dtype=torch.float32 if run.method == "full" else dtype
        )
    if run.quantization == "fp8":
        in_fp8(model, torch.device("cpu"), base_model.spec(run.model).unquantized)
    if run.method == "lora":
        heads = new_heads(kind, config) if run.task.startswith("classify") else []
        model = with_adapter(model, run, base_model.spec(run.model), None, heads)
        kernels.install(model, run.fake_quantization)
    if run.gradient_checkpointing:
        recompute(model, run.gradient_checkpointing)
    return model
