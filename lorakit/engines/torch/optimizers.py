"""What changes the weights: AdamW, its 8-bit, paged and schedule-free forms, Muon; LoRA+ gives B a rate of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lorakit.common.errors import LorakitError
from lorakit.machine.packages import require
from lorakit.run import Run, resolved

BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}


def make_optimizer(run: Run, trained: Mapping[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Weight decay acts on matrices, not on biases and norms. `ratio` of a group multiplies its learning rate."""
    parameters = list(trained.values())

    def kind(name: str) -> tuple[bool, bool]:
        """(whether it is no matrix, whether it is LoRA+'s B)"""
        return trained[name].ndim < 2, run.loraplus_ratio != 1 and ".lora_B." in name

    groups = [
        {
            "params": [p for n, p in trained.items() if kind(n) == (flat, faster)],
            "weight_decay": 0.0 if flat else run.weight_decay,
            "ratio": run.loraplus_ratio if faster else 1.0,
        }
        for flat, faster in sorted(set(map(kind, trained)))
    ]
    if run.optimizer == "muon":
        if flat := next((n for n, p in trained.items() if p.ndim != 2), None):
            raise LorakitError(
                f"Muon updates matrices alone, and {flat!r} is none",
                setting="optimizer",
                value="muon",
                cure="use optimizer=adamw",
            )
        # Updates are scaled to AdamW's size, so that its learning rates hold (arXiv 2502.16982).
        return torch.optim.Muon(
            groups, lr=resolved(run.learning_rate), adjust_lr_fn="match_rms_adamw"
        )
    if run.optimizer == "adamw_schedule_free":
        require("schedulefree", purpose=f"optimizer={run.optimizer}")
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree(groups, lr=resolved(run.learning_rate))
    if run.optimizer == "adamw":
        where = parameters[0].device
        fused = where.type in ("cpu", "cuda")
        adamw = torch.optim.AdamW(groups, lr=resolved(run.learning_rate), fused=fused)
        for p in parameters:  # now, and not in the first update, which memory would end halfway
            moments = {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), device=where if fused else "cpu")
            adamw.state[p] = {"step": step} | moments
        return adamw
    import bitsandbytes

    return getattr(bitsandbytes.optim, BITSANDBYTES[run.optimizer])(
        groups, lr=resolved(run.learning_rate)
    )
