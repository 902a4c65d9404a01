"""Down from the fastest settings to those that fit the memory; what is refused when none does."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from lorakit import engines
from lorakit.common.choice import Choice, Choices
from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import Facts
from lorakit.models import base_model
from lorakit.models.spec import known
from lorakit.planning import memory
from lorakit.run import Run


def ladder(run: Run, facts: Facts) -> Choices:
    """Down from the fastest way to the one that fits: fewer tokens at a time, then recomputing activations (of as few
    layers as it takes), then keeping them in the host's memory. What the user has set stays as it is."""
    room, of = 0.85 * facts.device_memory, memory.shape(run)
    again = (False, True) if run.gradient_checkpointing == "auto" else (run.gradient_checkpointing,)
    away = (False, True) if run.offload == "auto" else (run.offload,)
    rungs = [
        run.with_(micro_batch_tokens=tokens, gradient_checkpointing=a, offload=b)
        for b in away
        for a in again
        for tokens in _tokens(run, facts)
        if a or not b or len(away) == 1
    ]  # offloading comes after recomputing, unless it is asked for
    tried: list[tuple[Run, int]] = []
    for rung in rungs:
        tried.append((rung, memory.memory(rung, of, facts)["total"]))
        if tried[-1][1] <= room:
            break
        fewest = rung.micro_batch_tokens == rungs[-1].micro_batch_tokens
        if (
            fewest
            and len(again) == 2
            and not (rung.gradient_checkpointing or rung.offload)
            and (some := _some_layers(rung, of, tried[-1][1], room, facts))
        ):
            tried.append(some)
            break
    best, need = tried[-1]
    words = f"{need / 1e9:.1f} GB of the {room / 1e9:.1f} GB that may be used"
    above = f"; without it {tried[-2][1] / 1e9:.1f} GB" if len(tried) > 1 else ""
    return {
        name: Choice(getattr(best, name), words + above)
        for name in ("micro_batch_tokens", "gradient_checkpointing", "offload")
        if getattr(run, name) == "auto"
    }


def _some_layers(
    run: Run, of: memory.Shape, need: int, room: float, facts: Facts
) -> tuple[Run, int] | None:
    """Recomputing as few layers as it takes, where that is not all of them."""
    least = memory.memory(run.with_(gradient_checkpointing=True), of, facts)["total"]
    if least >= room:
        return None
    count, takes, each = 0, need, (need - least) / of.layers
    while (count := count + ceil((takes - room) / each)) < of.layers:
        some = run.with_(gradient_checkpointing=count)
        if (takes := memory.memory(some, of, facts)["total"]) <= room:
            return some, takes
    return None


def _tokens(run: Run, facts: Facts) -> list[int]:
    """Tokens at a time to try, the most first; a row of full length has to fit."""
    if run.micro_batch_tokens != "auto":
        return [run.micro_batch_tokens]
    most = 16384 if facts.device == "cuda" and facts.device_memory >= 40e9 else 4096
    return [
        max(most >> k, run.max_length)
        for k in range(8)
        if k == 0 or most >> k > run.max_length // 2
    ]


def refuse(run: Run, facts: Facts) -> None:
    """Raises `LorakitError` when a resolved run cannot fit, with the nearest settings that do."""
    need = memory.memory(run, facts=facts)["total"]
    if need <= facts.device_memory:
        return
    small = smaller_forms(run, facts)[:1]
    proposals: dict[str, Sequence[Any]] = {
        "quantization": small if run.method == "lora" and run.quantization == "none" else [],
        "max_length": [n for n in (2048, 1024, 512, 256, 128) if n < run.max_length],
        "rank": [n for n in (32, 16, 8, 4) if n < run.rank and run.method == "lora"],
    }
    found = []
    for name, values in proposals.items():
        for value in values:
            smaller = run.with_(
                **{name: value, **({"micro_batch_tokens": value} if name == "max_length" else {})}
            )
            if memory.memory(smaller, facts=facts)["total"] <= 0.85 * facts.device_memory:
                found.append(f"{name}={value}")
                break
    cure = "take a smaller model or a larger card"
    if facts.cards and (copies := quantized_copies(run.model)):
        cure = f"take model={copies[0]}, the same weights in 4 bits"
    if found:
        cure = f"it would fit with {' or '.join(found)}"
    if facts.device_memory < need <= facts.most_memory:
        cure += f", or give the GPU more of this Mac's memory: {facts.more}"
    raise LorakitError(
        f"{run.model}: about {need / 1e9:.1f} GB are needed and {facts.device_memory / 1e9:.1f} GB are "
        f"there, one row at a time; {cure}"
    )


def quantized_copies(model: str) -> list[str]:
    """Known models with the weights of this one, stored in 4 bits."""
    name = base_model.spec(model).name
    return [s.name for s in known().values() if s.name == f"{name}-nf4" and s.stored == "nf4"]


def smaller_forms(run: Run, facts: Facts) -> list[str]:
    """The quantizations that this engine has here for weights that are stored in none, the smallest first."""
    return [name for name in engines.get(run.engine).quantizations(facts) if name != "gguf"]
