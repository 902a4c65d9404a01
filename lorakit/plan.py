"""Chooses what the user left open, each choice with its reason, and predicts memory and time before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorakit import base, registry
from lorakit.errors import LorakitError
from lorakit.machine import Facts
from lorakit.models import Spec
from lorakit.run import Run

NF4_BITS = 4.127  # per weight with double quantization: 4 + 8/64 + 32/(64·256), arXiv 2305.14314 §3
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
Choices = dict[str, tuple[Any, str]]  # setting -> (value, reason)


def resolve(run: Run, facts: Facts, started: int | None = None) -> tuple[Run, Choices]:
    """The run with every `auto` that the machine decides replaced, and why; `started` processes are there already.

    Raises `LorakitError` when the machine cannot do what was asked for.
    """
    spec, chosen = base.spec(run.model), {}
    if run.folds is not None:
        raise LorakitError(f"folds={run.folds} is not served yet by this version; leave it out")
    chosen["processes"] = (started, "as they were started") if started else processes(run, facts)
    if chosen["processes"][0] > run.global_batch_size:
        raise LorakitError(f"processes={chosen['processes'][0]} and global_batch_size={run.global_batch_size}: some "
                           "processes would have no row; raise global_batch_size or lower processes")
    chosen["engine"] = engine(run, facts, spec)
    chosen["precision"] = precision(run, facts, spec)
    run = run.with_(**{name: value for name, (value, _) in chosen.items()})
    chosen["quantization"] = quantization(run, facts)
    run = run.with_(quantization=chosen["quantization"][0])
    if run.packing == "auto":
        chosen["packing"] = (True, "no padding is computed; the engine tries out that no document sees another")
    if run.micro_batch_tokens == "auto":
        room = 4096 if facts.device == "cpu" or facts.device_memory < 40e9 else 16384
        chosen["micro_batch_tokens"] = (max(room, run.max_length), f"activations of {room} tokens at a time")
    if run.micro_batch_size == "auto":
        chosen["micro_batch_size"] = (run.global_batch_size, "the tokens at a time are the limit")
    run = run.with_(**{n: v for n, (v, _) in chosen.items()})
    if run.gradient_checkpointing == "auto":
        need, room = memory(run.with_(gradient_checkpointing=False))["total"], 0.8 * facts.device_memory
        on = need > room
        words = f"without it {need / 1e9:.1f} GB are needed, {room / 1e9:.1f} GB may be used"
        chosen["gradient_checkpointing"] = (on, words)
        run = run.with_(gradient_checkpointing=on)
    return run, chosen


def processes(run: Run, facts: Facts) -> tuple[int, str]:
    """One per card."""
    if run.processes != "auto":
        if len(facts.cards) not in (0, 1) and run.processes > len(facts.cards):
            raise LorakitError(f"processes={run.processes}, and this machine has {len(facts.cards)} cards; lower it")
        return run.processes, "asked for"
    count = max(1, min(len(facts.cards), run.global_batch_size))
    return count, f"one for each of {count} cards" if count > 1 else "one card" if facts.cards else "one process"


def engine(run: Run, facts: Facts, spec: Spec) -> tuple[str, str]:
    refused = {}
    for name in [run.engine] if run.engine != "auto" else registry.names("engines"):
        reason = registry.load("engines", name).fits(facts, spec)
        if not reason:
            return name, "asked for" if run.engine != "auto" else f"it serves {facts.device}"
        refused[name] = reason
    raise LorakitError("no engine can serve here: " + "; ".join(f"{n}: {r}" for n, r in refused.items()))


def precision(run: Run, facts: Facts, spec: Spec) -> tuple[str, str]:
    if run.precision == "fp16" and facts.device == "cpu":
        raise LorakitError("precision='fp16' needs a CUDA card; use fp32 or bf16 on a CPU")
    if run.precision == "fp16" and not spec.fp16:
        raise LorakitError(f"precision='fp16' overflows in {run.model}; use bf16 or fp32")
    if run.precision != "auto":
        return run.precision, "asked for"
    if facts.device != "cuda":
        return "fp32", f"exact, and {facts.device} gains little from less"
    if facts.cards[0].bf16:
        return "bf16", f"{facts.cards[0].name} computes bf16 in hardware"
    if spec.fp16:
        return "fp16", f"{facts.cards[0].name} has no bf16 hardware"
    return "fp32", f"{facts.cards[0].name} has no bf16 hardware, and {run.model} overflows in fp16"


def quantization(run: Run, facts: Facts) -> tuple[str, str]:
    if run.quantization != "auto":
        return run.quantization, "asked for"
    if run.method == "full":
        return "none", "full fine-tuning trains the weights themselves"
    need, room = memory(run.with_(quantization="none", micro_batch_size=1, micro_batch_tokens=run.max_length,
                                  gradient_checkpointing=True))["total"], 0.8 * facts.device_memory
    words = f"unquantized it takes {need / 1e9:.1f} GB of the {room / 1e9:.1f} GB that may be used"
    return ("none", words) if need < room else ("nf4", words)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, counted on its skeleton without weights."""

    linear: int  # weights of the layers that are quantized and adapted
    other: int  # embeddings, norms, head
    adapter: int  # weights of the adapters
    layers: int
    hidden: int
    wide: int  # inner width of the MLP
    vocabulary: int


def shape(run: Run) -> Shape:
    """Counts parameters on the meta device, so no weight is read."""
    import torch
    from transformers import AutoModelForCausalLM

    config = base.config(run.model)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise LorakitError(f"{run.model}: {str(error).splitlines()[0]}") from None
    wanted = run.target_modules if run.target_modules != "auto" else base.spec(run.model).target_modules
    linear = adapter = 0
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            linear += module.weight.numel()
            if isinstance(wanted, str) or name.rsplit(".", 1)[-1] in wanted:
                adapter += run.rank * (module.in_features + module.out_features)
    text = config.get_text_config()
    return Shape(linear, sum(p.numel() for p in model.parameters()) - linear, adapter, text.num_hidden_layers,
                 text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size, text.vocab_size)


def memory(run: Run, of: Shape | None = None) -> dict[str, int]:
    """Predicted peak bytes by part: weights, trained (with gradients and optimizer), activations, logits, total.

    Activations per token and layer: what the backward pass keeps of a gated block, about 14 vectors of the hidden
    width and 5 of the MLP's, as counted after arXiv 2205.05198 §4 with attention recomputed inside its kernel.
    """
    of, width = of or shape(run), BYTES.get(run.precision, 4)
    tokens = run.micro_batch_tokens if run.micro_batch_tokens != "auto" else run.max_length
    if run.micro_batch_size != "auto":
        tokens = min(tokens, run.micro_batch_size * run.max_length)
    moments = {"adamw": 8, "paged_adamw_32bit": 8}.get(run.optimizer, 2.03)
    if run.method == "full":
        trained, weights = of.linear + of.other, 4 * (of.linear + of.other)
        extra = trained * (4 + moments)
    else:
        bits = {"nf4": NF4_BITS, "int8": 8.1}.get(run.quantization, 8 * width)
        weights, extra = of.linear * bits / 8 + of.other * width, of.adapter * (4 + 4 + moments)
    layer = tokens * width * (14 * of.hidden + 5 * of.wide)
    activations = layer * of.layers
    if run.gradient_checkpointing is True:  # one layer at a time, and every layer's input
        activations = layer + of.layers * tokens * of.hidden * width
    logits = tokens * of.vocabulary * (width + 8)
    parts = {"weights": weights, "trained": extra, "activations": activations, "logits": logits}
    return {k: int(v) for k, v in {**parts, "total": sum(parts.values())}.items()}


def matmul_rate() -> float:
    """Measured FLOP/s of a 1,024³ fp32 product on the device training will use."""
    import time

    import torch

    where = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    a, best = torch.randn(1024, 1024, device=where), 0.0
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def seconds(run: Run, of: Shape, tokens: int, rate: float) -> float:
    """Predicted time for `tokens` input tokens: 4 FLOP a token and frozen weight (6 when it is trained), 2 more with
    checkpointing, at a third of the measured matmul rate, which small layers and the rest of the work leave."""
    per_weight = (6 if run.method == "full" else 4) + (2 if run.gradient_checkpointing is True else 0)
    return per_weight * (of.linear + of.vocabulary * of.hidden) * tokens / (rate / 3)
