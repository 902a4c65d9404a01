"""Out of memory, in the words of torch, cuBLAS, cuDNN, the driver and the CPU's allocator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lorakit.common.errors import LorakitError, first_line

PHRASES = (
    "out of memory",
    "can't allocate memory",
    "STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # there was no room for its workspace
)


def out_of_memory(error: BaseException) -> bool:
    """Whether less memory would have avoided this error. Most of these are a `RuntimeError` like any other."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error) for p in PHRASES)


@contextlib.contextmanager
def while_loading() -> Iterator[None]:
    """Raises `LorakitError` where memory ran out within this block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise LorakitError(
            f"out of memory while the model was loaded: {first_line(error)}",
            setting="quantization",
            cure="quantization=nf4, a smaller model, or fewer other programs on this device",
        ) from None
