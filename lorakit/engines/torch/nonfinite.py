"""Finds the layer that overflows first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def watch(model: Any) -> Iterator[list[str]]:
    """Notes the first module whose output, or whose output's gradient, is not finite in passes within this block."""
    found: list[str] = []

    def look(name: str, what: str) -> Any:
        def hook(module: Any, _: Any, values: Any) -> None:
            values = values if isinstance(values, (tuple, list)) else [values]
            if not found and any(
                torch.is_tensor(v) and v.is_floating_point() and not v.isfinite().all()
                for v in values
            ):
                found.append(f"{what} {name}")

        return hook

    hooks = []
    for name, leaf in [(n, m) for n, m in model.named_modules() if not list(m.children())]:
        overflows = look(name, "the first layer that overflows is")
        hooks.append(leaf.register_forward_hook(overflows))
        behind = look(name, "the gradient overflows first behind")
        hooks.append(leaf.register_full_backward_hook(behind))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
