"""Facts about this machine. What follows from them is decided in `plan.py`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lorakit.common.locations import ROOT
from lorakit.machine.packages import replaced

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "papermill",
    "jupyterlab",
    "ipywidgets",
    "unsloth",
    "torchao",
    "mlx",
    "mlx-lm",
)
HELD = (
    "torch",
    "torchaudio",
    "torchvision",
)  # on Colab and Kaggle, built for their cards; with CUDA gigabytes
DRIVE = "/content/drive/MyDrive"

# What torchrun says to its processes; their own children are none of them.
LAUNCHED = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}


@dataclass(frozen=True)
class Card:
    """One CUDA card."""

    name: str
    memory: int  # bytes that programs can use
    capability: tuple[int, int]

    @property
    def bf16(self) -> bool:
        """In hardware: compute capability 8.0 (Ampere) and later. Older cards emulate it slowly."""
        return self.capability >= (8, 0)

    @property
    def fp8(self) -> bool:
        """In hardware: compute capability 8.9 (Ada) and later."""
        return self.capability >= (8, 9)

    def served(self, archs: tuple[str, ...]) -> bool:
        """Whether a torch built for these architectures runs on it: same major version, or PTX to compile from."""
        for arch in archs:
            kind, _, number = arch.partition("_")
            digits = re.match(r"\d+", number)
            if digits:
                built = divmod(int(digits[0]), 10)
                if built <= self.capability and (
                    built[0] == self.capability[0] or kind == "compute"
                ):
                    return True
        return not archs

    @property
    def arch(self) -> str:
        """`sm_75`"""
        return "sm_{}{}".format(*self.capability)


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
    torch_archs: tuple[
        str, ...
    ] = ()  # cards that the installed torch was built for; empty: unknown
    replaced: tuple[tuple[str, str, str], ...] = ()  # (package, version imported here, on disk)
    drive: bool = False  # Colab's Google Drive is mounted
    gpu_memory: int = (
        0  # what a Mac lets its GPU hold (Metal's recommendedMaxWorkingSetSize); 0: not asked
    )
    translated: bool = False  # an x86_64 Python on an Apple chip, under Rosetta
    mps_fallback: bool = False  # what Apple's GPU lacks is computed on the CPU without a word
    bf16_units: str = (
        ""  # what the CPU multiplies bf16 with: AMX, AVX-512 BF16, Arm BF16; "": nothing
    )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hosted(self) -> bool:
        """Whether the machine runs an image of Colab or Kaggle, whose packages fit each other."""
        return self.place in ("colab", "kaggle")

    @property
    def device(self) -> str:
        return "cuda" if self.cards else "mps" if self.mps else "cpu"

    @property
    def apple(self) -> bool:
        """One memory for an Apple chip's CPU and GPU."""
        return self.mps or self.system == "Darwin arm64"

    @property
    def device_memory(self) -> int:
        """Bytes where the model will live: of the smallest card, of what a Mac lets its GPU hold, else of the machine.

        A Mac of up to 32 GB lets it hold two thirds, a larger one three quarters (recommendedMaxWorkingSetSize as
        llama.cpp reports it: 17,180 MB of 24 GiB, 28,991 MB of 36, 38,655 MB of 48).
        """
        if self.cards:
            return min(c.memory for c in self.cards)
        share = 2 / 3 if self.memory <= 32 * 2**30 else 3 / 4
        return (self.gpu_memory or int(self.memory * share)) if self.apple else self.memory

    @property
    def most_memory(self) -> int:
        """The same after `more`: 4 GiB, or an eighth, stay for macOS."""
        return (
            max(self.device_memory, self.memory - max(4 * 2**30, self.memory // 8))
            if self.apple
            else self.device_memory
        )

    @property
    def more(self) -> str:
        """The command that gives a Mac's GPU more of the memory, until the next start; "" where there is none."""
        megabytes = self.most_memory // 2**20
        return (
            f"sudo sysctl iogpu.wired_limit_mb={megabytes}"
            if self.most_memory > self.device_memory
            else ""
        )


def facts(folder: str | os.PathLike = ".") -> Facts:
    """The facts of the machine this runs on; free disk is that of `folder`."""
    import psutil

    packages = installed()
    archs, mps, room = (), False, 0
    if "torch" in packages:
        import torch

        archs, mps = tuple(torch.cuda.get_arch_list()), torch.backends.mps.is_available()
        room = torch.mps.recommended_max_memory() if mps else 0
    home = Path(folder)
    while not home.exists():
        home = home.parent
    return Facts(
        place=place(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        disk_free=shutil.disk_usage(home).free,
        cards=cards(),
        mps=mps,
        packages=packages,
        torch_archs=archs,
        replaced=tuple(replaced()),
        drive=Path(DRIVE).is_dir(),
        gpu_memory=room,
        translated=translated(),
        bf16_units=bf16_units(),
        mps_fallback=mps and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") != "0",
    )


def installed() -> dict[str, str]:
    """Versions of the packages that bear on a result."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


# The kernel's flags of a CPU, the fastest first.
BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "Arm BF16"}


def bf16_units() -> str:
    """The units of this CPU that multiply bf16; "" where it has none, or where the system does not list them."""
    try:
        content = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", content, re.MULTILINE)
    flags = set(listed[1].split()) if listed else set()
    return next((name for flag, name in BF16_FLAGS.items() if flag in flags), "")


def translated() -> bool:
    """Whether macOS runs this process under Rosetta."""
    ask = [
        "sysctl",
        "-n",
        "sysctl.proc_translated",
    ]  # 1; 0 on Apple's chips without it; an error on Intel's
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=30).stdout.strip() == "1"
    except (OSError, subprocess.SubprocessError):
        return False


def cards() -> tuple[Card, ...]:
    """The visible CUDA cards, asked from the driver: CUDA itself stays untouched, its context would take memory."""
    ask = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,compute_cap",
        "--format=csv,noheader,nounits",
    ]
    try:
        out = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(read_cards(out), os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_cards(answer: str) -> list[Card]:
    """The lines of nvidia-smi: `Tesla T4, 15360, 7.5`. The driver keeps about 3 % of the memory for itself."""
    found = []
    for line in answer.splitlines():
        parts = [p.strip() for p in line.rsplit(",", 2)]
        if (
            len(parts) == 3
            and re.fullmatch(r"\d+", parts[1])
            and re.fullmatch(r"\d+\.\d+", parts[2])
        ):
            major, minor = parts[2].split(".")
            found.append(
                Card(parts[0], int(int(parts[1]) * 1024**2 * 0.97), (int(major), int(minor)))
            )
    return found


def visible(found: list[Card], wanted: str | None) -> tuple[Card, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves; names instead of numbers tell only how many."""
    if wanted is None:
        return tuple(found)
    names = [w.strip() for w in wanted.split(",") if w.strip()]
    if all(re.fullmatch(r"\d+", n) for n in names):
        return tuple(found[int(n)] for n in names if int(n) < len(found))
    return tuple(found[: len([n for n in names if n != "-1"])])


def resident() -> int:
    """Bytes of memory that this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_resident() -> int:
    """Bytes that it held at most, since it began or since `forget_peak`."""
    with contextlib.suppress(OSError):  # ru_maxrss begins with that of the parent process
        peak_line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if peak_line:
            return int(peak_line[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def forget_peak() -> None:
    """Linux lets a process do so; elsewhere nothing happens."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def return_large_blocks() -> None:
    """Makes glibc give freed blocks of 5 MB and more back at once.

    It keeps them otherwise, and cannot put an aligned block where one of the same size has been: half of the peak was
    air. Elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 5 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the rest stays


def place() -> str:
    """colab, kaggle, mac or server."""
    if "COLAB_RELEASE_TAG" in os.environ or Path("/content/sample_data").is_dir():
        return "colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ or Path("/kaggle/working").is_dir():
        return "kaggle"
    return "mac" if platform.system() == "Darwin" else "server"


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this very lorakit, and nothing from the working folder.

    PYTHONSAFEPATH keeps `python -m` and `python -c` from putting the working folder before the standard library: a
    `json.py` that lies beside the data must not run.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    alone = {
        k: v
        for k, v in os.environ.items()
        if k not in LAUNCHED and not k.startswith("TORCHELASTIC_")
    }
    return {
        **alone,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }
