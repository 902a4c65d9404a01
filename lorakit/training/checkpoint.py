"""Save and restore everything that training needs to go on. One file per checkpoint, so a rename makes it whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write


def write(path: Path, tensors: dict[str, np.ndarray], meta: dict) -> None:
    """Atomic: the file under `path` is the old one or the new one, whole, also after a kill or on a full disk."""
    # safetensors has no 0-d arrays in every version; a shape of (1,) stands for them, noted in the header.
    scalars = [k for k, v in tensors.items() if v.ndim == 0]
    content = save(
        {k: np.ascontiguousarray(np.atleast_1d(v)) for k, v in tensors.items()},
        {"meta": json.dumps(meta), "scalars": json.dumps(scalars)},
    )
    with atomic_write(path) as part, open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """(tensors, meta). Raises `LorakitError` when the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata()
            scalars = set(json.loads(header["scalars"]))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            meta = json.loads(header["meta"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise LorakitError(
            f"{path}: the checkpoint is damaged ({error}); delete it to begin anew"
        ) from None
    return {k: v.reshape(()) if k in scalars else v for k, v in tensors.items()}, meta
