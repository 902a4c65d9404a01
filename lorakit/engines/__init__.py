"""What computes: one engine per file or package, found by its name.

To add one, write a module with what `EngineModule` in `protocol.py` requires; its `load` returns an `Engine`.
"""

from __future__ import annotations

from typing import cast

from lorakit.common import registry
from lorakit.engines.protocol import EngineModule as INTERFACE

HELPERS = ("protocol", "quantization")


def get(name: str) -> INTERFACE:
    """The description of an engine, which imports no framework. Raises `LorakitError` listing the engines present."""
    return cast(INTERFACE, registry.load("engines", name))


def every() -> dict[str, INTERFACE]:
    """The descriptions of all engines by name."""
    return {name: get(name) for name in registry.names("engines")}
