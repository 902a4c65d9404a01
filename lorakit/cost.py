"""What a run will take: memory at the peak and time, predicted before training."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit import base, models
from lorakit.errors import LorakitError
from lorakit.run import Run

NF4_BITS = 4.127  # per weight with double quantization: 4 + 8/64 + 32/(64·256), arXiv 2305.14314 §3
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
            if models.adapts(wanted, name):
                adapter += run.rank * (module.in_features + module.out_features)
    text = config.get_text_config()
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    wide = max(wide) if isinstance(wide, (list, tuple)) else wide  # Gemma 3n: one for each layer
    return Shape(linear, sum(p.numel() for p in model.parameters()) - linear, adapter, text.num_hidden_layers,
                 text.hidden_size, wide, text.vocab_size)


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
        bits = {"nf4": NF4_BITS, "affine4": 4 + 16 * width / 64, "int8": 8.1}.get(run.quantization, 8 * width)
        each = run.processes if run.shard and run.processes != "auto" else 1  # its share of the layers
        weights, extra = of.linear * bits / 8 / each + of.other * width, of.adapter * (4 + 4 + moments)
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
