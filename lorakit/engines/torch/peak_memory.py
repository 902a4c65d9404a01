"""Peak memory of training and of generation, each by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lorakit.machine import hardware


class PeakMemory:
    """Bytes on the device; on a CPU what is resident beyond `idle`, the bytes before the model was loaded."""

    def __init__(self, device: torch.device, idle: int):
        self.device, self.idle = device, idle
        self.earlier = self.generation = 0
        self.forget()  # loading and the trials have held more

    @property
    def training(self) -> int:
        return max(self.earlier, self.read())

    def read(self) -> int:
        """The peak since `forget`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return max(0, hardware.peak_resident() - self.idle)

    def forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        hardware.forget_peak()

    @contextlib.contextmanager
    def of_generation(self) -> Iterator[None]:
        """What is taken within this block is not training's."""
        self.earlier = self.training
        self.forget()
        try:
            yield
        finally:
            self.generation = max(self.generation, self.read())
            self.forget()
