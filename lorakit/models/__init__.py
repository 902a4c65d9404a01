"""Models that lorakit knows by name, one module each, `SPEC` in it. Any other hub id or folder works with `Spec()`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """What a model needs beyond its own configuration."""

    path: str = ""  # hub id or folder
    licence: str = "see the model's page"
    target_modules: tuple[str, ...] | str = "all-linear"  # layers that get an adapter
    fp16: bool = True  # False where activations overflow half precision
    source: str = ""  # where these facts are from
