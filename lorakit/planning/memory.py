"""What a run will take: memory at the peak and time, predicted before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lorakit import engines, tasks
from lorakit.common import registry
from lorakit.common.files import remembered, state
from lorakit.engines import quantization
from lorakit.engines.protocol import EngineModule
from lorakit.engines.quantization.protocol import Quantization
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.models import base_model, gguf, spec
from lorakit.run import Run

SHAPES = 3  # raise it when `_shape` counts something else
PROMPTS = 16  # answered together, as `results.evaluate.generate` does
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


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
    widest: int  # weights of the largest quantized layer
    experts: int = 0  # of `other`, weights of stacked experts
    used: float = 1.0  # share of them that a token goes through
    largest: int = 0  # weights of the four largest tensors: as many are loaded at a time
    cached: int = 0  # keys and values that a token of an answer leaves behind


def shape(run: Run) -> Shape:
    """Counts parameters on the meta device, so no weight is read. Counted once for a model and its targets."""
    base = base_model.of(run.model)
    wanted = run.target_modules if run.target_modules != "auto" else base.spec.target_modules
    key = [SHAPES, base.sizes_key, run.task, wanted, _versions()]
    counted = remembered("shapes", key, lambda: asdict(_shape(base, run.task, wanted)))
    return replace(Shape(**counted), adapter=counted["adapter"] * run.rank)


def _shape(base: base_model.BaseModel, task: str, wanted: str | Sequence[str]) -> Shape:
    """The sizes of a model with adapters of rank 1."""
    import torch

    config, model = base.sizes, base.skeleton(task)
    linear = adapter = widest = experts = 0
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            linear, widest = linear + module.weight.numel(), max(widest, module.weight.numel())
            if spec.adapts(wanted, name):
                adapter += module.in_features + module.out_features
    for name, stack in model.named_parameters():
        if stack.ndim == 3 and not name.endswith("weight"):  # (E, in, out)
            experts += stack.numel()
            if spec.stacked(wanted, name):
                adapter += len(stack) * sum(stack.shape[1:])
    text = config.get_text_config(decoder=True)
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    wide = max(wide) if isinstance(wide, (list, tuple)) else wide  # Gemma 3n: one for each layer
    each, of = (
        getattr(text, "num_experts_per_tok", None) or 1,
        getattr(text, "num_local_experts", None) or 1,
    )
    layers = getattr(text, "num_hidden_layers", None) or sum(getattr(text, "depths", [1]))
    return Shape(
        linear,
        sum(p.numel() for p in model.parameters()) - linear,
        adapter,
        layers,
        text.hidden_size,
        wide * each,
        getattr(text, "vocab_size", 0),
        widest,
        experts,
        each / of,
        sum(sorted(p.numel() for p in model.parameters())[-4:]),
        0 if task.startswith("classify") else _cached(text),
    )


def _cached(config: Any) -> int:
    """Keys and values of a token, of all layers; those with a window keep less."""
    layers = getattr(config, "num_hidden_layers", None) or 0
    layers -= getattr(config, "num_kv_shared_layers", None) or 0
    heads = getattr(config, "num_attention_heads", None) or 0
    if not isinstance(heads, int):
        return 0
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    return 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * width


@cache
def _versions() -> dict[str, str]:
    """Of the packages that decide how a model is built."""
    return hardware.installed()


def memory(run: Run, of: Shape | None = None, facts: Facts | None = None) -> dict[str, int]:
    """Predicted peak bytes by part: weights, trained (with gradients and optimizer), working, total.

    `working` is what lives for one micro-batch: the engine's own count where it has one, else `roughly`.

    Args:
        facts: the machine that is planned for; None: this one.
    """
    of = of or shape(run)
    moments = {"adamw": 8, "paged_adamw_32bit": 8, "muon": 4, "adamw_schedule_free": 8}.get(
        run.optimizer, 2.03
    )
    if run.method == "full":
        trained, weights = of.linear + of.other, 4.0 * (of.linear + of.other)
        extra = trained * (4 + moments)
    else:
        trained = of.adapter + run.trains_embeddings * 2 * of.vocabulary * of.hidden
        weights, extra = frozen(run, of), trained * (4 + 4 + moments)
    rounded = (
        of.linear * BYTES.get(run.precision, 4) if run.fake_quantization != "none" else 0
    )  # kept while it answers
    parts = {"weights": weights, "trained": extra, "working": max(working(run, of, facts), rounded)}
    return {k: int(v) for k, v in {**parts, "total": sum(parts.values())}.items()}


def frozen(run: Run, of: Shape) -> float:
    """Bytes of a frozen base: by the engine's own count where it has one."""
    if run.engine != "auto" and (counted := engines.get(run.engine).base_bytes):
        return counted(run, of.linear + of.other, of.experts)
    stored, width = base_model.spec(run.model).stored, BYTES.get(run.precision, 4)
    if stored in registry.names("quantization"):  # what is not quantized is in 16 bits
        bits = quantization.get(stored).bits_per_weight(2)
        return (of.linear + of.experts) * bits / 8 + (of.other - of.experts) * 2
    overflows = run.precision == "fp32" and not base_model.spec(run.model).fp16
    if overflows and run.engine != "auto" and engines.get(run.engine).HALF_WEIGHTS:
        width = 2
    file = gguf.source(base_model.path(run.model)) if run.quantization == "gguf" else None
    bits = gguf.read(file).bits_per_weight if file else form_of(run).bits_per_weight(width)
    each = run.processes if run.shard and run.processes != "auto" else 1  # its share of the layers
    return of.linear * bits / 8 / each + of.other * width


def at_a_time(run: Run, row: int = 0) -> int:
    """Tokens of a full micro-batch; `row`: what one row counts, where that is not `max_length`."""
    row = row or run.max_length * (
        2 if "rejected_ids" in tasks.objective_of(run.task).COLUMNS else 1
    )
    tokens = max(row, run.micro_batch_tokens) if run.micro_batch_tokens != "auto" else row
    return min(tokens, run.micro_batch_size * row) if run.micro_batch_size != "auto" else tokens


def working(run: Run, of: Shape, facts: Facts | None = None) -> float:
    """Bytes that live for one micro-batch. Counted for two sizes: between and beyond them it grows evenly."""
    tokens, engine = at_a_time(run), run.engine
    if engine != "auto":
        try:
            row = _row_positions(run)
            low, tokens = row or max(64, min(512, run.max_length)), at_a_time(run, row)
            card, high = capability(facts), 2 * low
            most = _simulated(run, high, card)
            found = float(most)
            if tokens != high:
                found += (most - _simulated(run, low, card)) * (tokens - high) / (high - low)
            if form_of(run).DEQUANTIZES:  # one layer's weights
                found += of.widest * BYTES.get(run.precision, 4)
            return found
        except NotImplementedError:
            pass
    return roughly(run, of, tokens)


def _row_positions(run: Run) -> int:
    """The engine's own count, asked once for a model and a length."""
    key = [base_model.of(run.model).sizes_key, run.engine, run.max_length, _versions()]
    return remembered("row_positions", key, lambda: engines.get(run.engine).row_positions(run))


# Settings without influence on the memory of a micro-batch of a given size.
NO_INFLUENCE = {
    "name", "data", "validation_data", "validation_fraction", "test_data", "test_fraction", "max_rows",
    "format", "columns", "group_by", "folds", "fold", "question", "language", "augment",
    "shuffle_answers", "alpha", "optimizer", "learning_rate", "schedule", "warmup_ratio",
    "weight_decay", "max_grad_norm", "epochs", "max_updates", "validate_every", "early_stopping",
    "global_batch_size", "micro_batch_size", "micro_batch_tokens", "seed", "processes", "shard",
    "loraplus_ratio", "neftune_alpha", "replay",
    "checkpoint_every", "max_minutes", "output_dir", "samples", "log_to", "metrics", "max_new_tokens",
    "general_questions",
}  # fmt: skip


def _simulated(run: Run, tokens: int, card: tuple[int, int] | None) -> int:
    """Bytes of a micro-batch of so many tokens by the engine's own count, made once for the settings that matter.

    Raises `NotImplementedError` where the engine cannot count this model.
    """
    settings = run.model_dump(exclude=NO_INFLUENCE)
    base, engine = base_model.of(run.model), engines.get(run.engine)
    key = [base.sizes_key, settings, tokens, _versions(), card, _source(engine)]
    count = _count(json.dumps(settings), tokens, card, json.dumps(key))
    if isinstance(count, str):
        raise NotImplementedError(count)
    return count


@lru_cache(maxsize=256)
def _count(settings: str, tokens: int, card: tuple[int, int] | None, key: str) -> int | str:
    """Bytes, or why they cannot be counted."""

    def simulate() -> int | str:
        run = Run(**json.loads(settings), data="-", output_dir="outputs")
        try:
            return int(engines.get(run.engine).working_bytes(run, tokens, card))
        except NotImplementedError as reason:
            return str(reason)

    return remembered("micro_batches", key, simulate)


def capability(facts: Facts | None = None) -> tuple[int, int] | None:
    """Compute capability of a machine's oldest card, which decides the kernels; None where there is no card."""
    if facts is not None:
        return min((c.capability for c in facts.cards), default=None)
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def _source(engine: EngineModule) -> list[Any]:
    """The state of an engine's source files: a change of its kernels changes what they keep."""
    file = Path(str(vars(engine)["__file__"]))
    files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
    return [state(path)[1:3] for path in sorted(files)]


def form_of(run: Run) -> Quantization:
    """The format of the base; unquantized while the run leaves it open."""
    return quantization.get("none" if run.quantization == "auto" else run.quantization)


def recomputed(run: Run, of: Shape) -> float:
    """Share of the layers whose activations are computed again."""
    asked = run.gradient_checkpointing
    if isinstance(asked, (bool, str)):
        return float(asked is True)
    return min(1.0, asked / of.layers)


def roughly(run: Run, of: Shape, tokens: int) -> float:
    """What the backward pass keeps of a gated block, about 14 vectors of the hidden width and 5 of the MLP's, as
    counted after arXiv 2205.05198 §4 with attention recomputed inside its kernel; and the logits."""
    width = BYTES.get(run.precision, 4)
    layer = tokens * width * (14 * of.hidden + 5 * of.wide)
    again = of.layers * recomputed(run, of)
    kept = layer * (of.layers - again) + (
        layer + again * tokens * of.hidden * width if again else 0
    )
    return kept + tokens * of.vocabulary * (width + 8)


def matmul_rate(precision: str = "fp32") -> float:
    """Measured FLOP/s of a square product, on the device and in the dtype that training will use.

    A card multiplies 4,096³, below which its launch counts; others 1,024³.
    """
    import time

    import torch

    where = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    size, best = 4096 if where == "cuda" else 1024, 0.0
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a = torch.randn(size, size, device=where).to(dtype)
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def generation(run: Run, of: Shape | None = None) -> int:
    """Bytes of keys and values while as many prompts as go together are answered, each of full length.

    They stand beside the weights, and are no part of training's peak.
    """
    half = run.precision == "fp16" and not base_model.of(run.model).spec.fp16
    value = 4 if half else BYTES.get(run.precision, 4)
    return (of or shape(run)).cached * value * PROMPTS * (run.max_length + run.max_new_tokens)


def seconds(run: Run, of: Shape, tokens: int, rate: float) -> float:
    """Predicted time for `tokens` input tokens: 4 FLOP a token and frozen weight (6 when it is trained), 2 more with
    checkpointing, at a third of the measured matmul rate, which small layers and the rest of the work leave."""
    per_weight = (6 if run.method == "full" else 4) + 2 * recomputed(run, of)
    return (
        per_weight
        * (of.linear + of.experts * of.used + of.vocabulary * of.hidden)
        * tokens
        / (rate / 3)
    )


def total_seconds(done: Sequence[tuple[int, float]], tokens: int) -> float:
    """Predicted time of a run over `tokens` input tokens, after a few updates of (input tokens, seconds) each.

    The first update warms up and counts once; the median of the others' seconds per token stands for the rest.
    """
    rates = sorted(seconds / count for count, seconds in done[1:])
    warm = done[0][1] - rates[len(rates) // 2] * done[0][0]
    return rates[len(rates) // 2] * tokens + max(0.0, warm)
