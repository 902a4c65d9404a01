"""Facts about this machine. What follows from them is decided in `plan.py`."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "papermill", "jupyterlab",
            "ipywidgets", "unsloth", "mlx", "mlx-lm")


# What torchrun says to its processes; their own children are none of them.
LAUNCHED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
            "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Card:
    """One CUDA card."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]

    @property
    def bf16(self) -> bool:
        """In hardware: compute capability 8.0 (Ampere) and later. Older cards emulate it slowly."""
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Facts:
    """What this machine is. Memory and disk in bytes."""

    place: str = "server"  # colab, kaggle, mac or server
    system: str = ""
    python: str = ""
    cores: int = 1
    memory: int = 0
    disk_free: int = 0
    cards: tuple[Card, ...] = ()
    mps: bool = False
    packages: dict[str, str] = field(default_factory=dict)  # name -> installed version

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def device(self) -> str:
        return "cuda" if self.cards else "mps" if self.mps else "cpu"

    @property
    def device_memory(self) -> int:
        """Bytes where the model will live: of the first card, else of the machine."""
        return self.cards[0].memory if self.cards else self.memory


def facts(folder: str | os.PathLike = ".") -> Facts:
    """The facts of the machine this runs on; free disk is that of `folder`."""
    import psutil

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cards, mps = (), False
    if "torch" in packages:
        import torch

        if torch.cuda.is_available():
            found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            cards = tuple(Card(p.name, p.total_memory, (p.major, p.minor)) for p in found)
        mps = torch.backends.mps.is_available()
    home = Path(folder)
    while not home.exists():
        home = home.parent
    return Facts(
        place=place(), system=f"{platform.system()} {platform.machine()}", python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total, disk_free=shutil.disk_usage(home).free, cards=cards, mps=mps,
        packages=packages,
    )


def place() -> str:
    """colab, kaggle, mac or server."""
    if "COLAB_RELEASE_TAG" in os.environ or Path("/content/sample_data").is_dir():
        return "colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ or Path("/kaggle/working").is_dir():
        return "kaggle"
    return "mac" if platform.system() == "Darwin" else "server"


def child_environment() -> dict[str, str]:
    """The environment of a child process that is to import this very lorakit."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    alone = {k: v for k, v in os.environ.items() if k not in LAUNCHED and not k.startswith("TORCHELASTIC_")}
    return {**alone, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
