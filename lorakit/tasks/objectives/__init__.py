"""What is learnt from a row, one objective each.

To add one, write a file with what `Objective` in `tasks/protocol.py` requires.
"""

from __future__ import annotations

from typing import cast

from lorakit.common import registry
from lorakit.tasks.protocol import Objective as INTERFACE


def get(name: str) -> INTERFACE:
    """The objective of this name. Raises `LorakitError` listing those present."""
    return cast(INTERFACE, registry.load("objectives", name))
