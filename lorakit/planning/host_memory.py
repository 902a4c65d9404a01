"""The host's memory that the processes of a run take together, predicted before training."""

from __future__ import annotations

from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import Facts
from lorakit.planning import memory
from lorakit.run import Run

# A process that has imported torch, transformers, peft and bitsandbytes holds 0.45 GB (measured on a CPU); what a CUDA
# context and its libraries add is taken as 1.5 GB and was not measured.
IDLE, CONTEXT = 0.45e9, 1.5e9


def host(run: Run, facts: Facts, of: memory.Shape | None = None) -> dict[str, int]:
    """Bytes by part, of all processes: idle, loading, kept (activations and a paged optimizer), total at the peak.

    Onto a card weights go tensor by tensor, as many at a time as transformers has loader threads; with `shard` each
    process first has the whole model in the host's memory. A checkpoint's pages in the system's cache are not counted:
    they give way. Without a card, the host holds all that `memory.memory` counts.
    """
    of = of or memory.shape(run)
    count = run.processes if run.processes != "auto" else 1
    if not facts.cards:
        total = count * memory.memory(run, of, facts)["total"]
        return {"idle": 0, "loading": 0, "kept": total, "total": total}
    width = 4 if run.method == "full" else memory.BYTES.get(run.precision, 4)
    parts = {
        "idle": count * (IDLE + CONTEXT),
        "loading": count * width * (of.linear + of.other if run.shard else of.largest),
        "kept": count * _kept(run, of, facts),
    }
    peak = parts["idle"] + max(parts["loading"], parts["kept"])  # one after the other
    return {name: int(size) for name, size in {**parts, "total": peak}.items()}


def _kept(run: Run, of: memory.Shape, facts: Facts) -> float:
    """Of one process while it trains: activations that were sent there, and what a paged optimizer may evict."""
    activations = 0.0
    if run.offload is True:
        on_card = memory.working(run.with_(offload=False), of, facts)
        activations = max(0.0, on_card - memory.working(run, of, facts))
    paged = {"paged_adamw_32bit": 8.0, "paged_adamw_8bit": 2.03}.get(run.optimizer, 0.0)
    return activations + paged * (of.linear + of.other if run.method == "full" else of.adapter)


def refuse(run: Run, facts: Facts, of: memory.Shape | None = None) -> None:
    """Raises `LorakitError` when the processes of a resolved run do not fit into the host's memory together."""
    need = host(run, facts, of)
    if not facts.memory or need["total"] <= facts.memory or (facts.apple and not facts.cards):
        return
    setting = next((n for n in ("shard", "offload") if getattr(run, n) is True), "processes")
    if run.processes in ("auto", 1) and setting == "processes":
        return  # one process without a card: what the device cannot hold is refused as such
    cure = "processes=1" if setting == "processes" else f"{setting}=false, or processes=1"
    raise LorakitError(
        f"{run.model}: {run.processes} processes need about {need['total'] / 1e9:.1f} GB of the host's memory, and "
        f"{facts.memory / 1e9:.1f} GB are there",
        setting=setting,
        value=getattr(run, setting),
        cure=cure,
    )
