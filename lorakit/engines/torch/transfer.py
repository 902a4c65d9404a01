"""Moves a micro-batch to the device without waiting for it."""

from __future__ import annotations

import numpy as np
import torch


def to_device(device: torch.device, **arrays: np.ndarray) -> dict[str, torch.Tensor]:
    """Integer arrays of one dimension -> int64 tensors on the device, to a card as one copy."""
    if device.type != "cuda":
        return {n: torch.from_numpy(np.asarray(a, np.int64)).to(device) for n, a in arrays.items()}
    joined = torch.from_numpy(np.concatenate([np.asarray(a, np.int64) for a in arrays.values()]))
    there = moved(joined, device)
    return dict(zip(arrays, there.split([len(a) for a in arrays.values()]), strict=True))


def moved(tensor: torch.Tensor | np.ndarray, device: torch.device) -> torch.Tensor:
    """The same on the device: to a card from pinned memory, behind the work that is queued already."""
    tensor = torch.as_tensor(tensor)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
