"""Others' known messages that tell a user nothing, kept off the screen. What is not listed here is shown."""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    "`is_gradient_checkpointing` is deprecated",  # transformers' own use of its own attribute
    "`gradient_checkpointing_enable` is deprecated",  # older transformers, which lorakit serves too, have no other name
    "Full backward hook is firing",  # our search for the layer that overflows
)
# logger -> the beginning of its message. bitsandbytes names a package that only makes a CPU's 4-bit product faster.
LOGGED = {"bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward"}


class _Known(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(LOGGED[record.name])


def quiet() -> None:
    """From now on in this process. Called by the command line and by what runs in a notebook's kernel."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGGED:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Known) for known in logger.filters):
            logger.addFilter(_Known())
