"""The Python packages that lorakit needs: missing or too old here, or replaced under this process.

Standard library and `packaging` only, so that it works before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

try:
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version
except ImportError:  # a new environment: pip brings its own copy
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    from pip._vendor.packaging.version import InvalidVersion, Version  # type: ignore[assignment]

from lorakit.common.errors import LorakitError
from lorakit.common.locations import ROOT

# Modules with a version that a cell before the first one may have imported. name of the package -> module
WATCHED = {"pillow": "PIL", "huggingface-hub": "huggingface_hub"} | {
    name: name
    for name in (
        "torch transformers tokenizers peft accelerate bitsandbytes datasets pyarrow pandas fsspec "
        "numpy scipy safetensors pydantic matplotlib torchao"
    ).split()
}


@dataclass(frozen=True)
class Unmet:
    """A requirement that the installed packages do not meet."""

    requirement: str  # as pip takes it: "bitsandbytes>=0.50"
    installed: str | None  # version; None: not installed

    @property
    def name(self) -> str:
        return Requirement(self.requirement).name


def version_of_lorakit() -> str:
    """Of the clone that this package lies in, else of the installed package."""
    if project := _clone():
        return str(project["version"])
    return metadata.version("lorakit")


@cache
def declared(extra: str = "") -> list[Requirement]:
    """lorakit's requirements, or those of one of its extras, that apply to this platform."""
    if project := _clone():
        groups = project["optional-dependencies"]
        lines = groups.get(extra, []) if extra else project["dependencies"]
        found = [Requirement(line) for line in lines]
        return [r for r in found if r.marker is None or r.marker.evaluate()]
    found = [Requirement(line) for line in metadata.requires("lorakit") or ()]
    return [
        r
        for r in found
        if (r.marker is None or r.marker.evaluate({"extra": extra}))
        and (not extra or (r.marker is not None and not r.marker.evaluate({"extra": ""})))
    ]


def extras() -> list[str]:
    """Names of lorakit's extras."""
    if project := _clone():
        return sorted(project["optional-dependencies"])
    return metadata.metadata("lorakit").get_all("Provides-Extra") or []


def unmet(requirements: Iterable[Requirement]) -> list[Unmet]:
    """Those that are not installed, or in a version that lorakit does not support."""
    found = []
    for requirement in requirements:
        here = installed(requirement.name)
        if here is None or not requirement.specifier.contains(here, prereleases=True):
            found.append(Unmet(f"{requirement.name}{requirement.specifier}", here))
    return found


def specified(names: Sequence[str]) -> list[Requirement]:
    """Each package with the version range that lorakit's requirements and extras give it."""
    known = {normal(r.name): r for extra in ("", *extras()) for r in declared(extra)}
    return [known.get(normal(name), Requirement(name)) for name in names]


@cache
def require(*names: str, purpose: str) -> None:
    """Raises `LorakitError` naming the packages that `purpose` needs and that are missing or too old here."""
    lacking = unmet(specified(names))
    if not lacking:
        return
    here = ", ".join(
        f"{u.name} {u.installed} is too old" if u.installed else f"{u.name} is not installed"
        for u in lacking
    )
    raise LorakitError(
        f"{purpose} needs {' and '.join(names)}: {here}",
        value=[u.name for u in lacking],
        cure=f"run: pip install {' '.join(quoted(u.requirement) for u in lacking)}",
    )


def replaced() -> list[tuple[str, str, str]]:
    """(package, version that this process has imported, version on the disk) where the two differ.

    An imported package cannot be exchanged: after `pip install` the process holds parts of both versions until it is
    restarted.
    """
    found = []
    for name, module in WATCHED.items():
        loaded = getattr(sys.modules.get(module), "__version__", None)
        here = installed(name)
        if loaded and here and not _same(str(loaded), here):
            found.append((name, str(loaded), here))
    return found


OLDEST_TORCHAO = "0.16"  # what PEFT 0.19 to 0.21 accepts


def ignored_torchao(versions: Mapping[str, str]) -> bool:
    """Whether the torchao among these packages is one that PEFT refuses."""
    return "torchao" in versions and Version(versions["torchao"]) < Version(OLDEST_TORCHAO)


def tolerate_old_packages() -> None:
    """Makes PEFT treat a package that is too old for it as not installed.

    PEFT asks `is_torchao_available()` (and the like for gptqmodel) whenever it wraps a layer, and raises ImportError
    where the package is there but old, even if nothing uses it. Colab and Kaggle ship torchao 0.10
    (https://github.com/unslothai/notebooks/issues/258). Imports PEFT; calling it again does nothing.
    """
    from peft import import_utils

    for name in [n for n in vars(import_utils) if re.fullmatch(r"is_\w+_available", n)]:
        check = getattr(import_utils, name)
        if getattr(check, "tolerant", False):
            continue

        def tolerant(*args: Any, _check: Callable = check, **options: Any) -> bool:
            try:
                return _check(*args, **options)
            except ImportError:
                return False

        tolerant.tolerant = True  # type: ignore[attr-defined]
        for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "peft"]:
            if getattr(module, name, None) is check:
                setattr(module, name, tolerant)


NO_VIDEO_READER = "0.26"  # the first torchvision without torchvision.io.VideoReader


def tolerate_new_torchvision() -> None:
    """Keeps `datasets` from asking torchvision, where this has no `VideoReader`, whether a value is a video.

    `datasets` 4.0, on Colab beside torchvision 0.26, imports that class for every value of a row once torchvision is
    loaded, and fails. Imports `datasets`; calling it again does nothing.
    """
    version = installed("torchvision")
    if version and Version(version) >= Version(NO_VIDEO_READER):
        from datasets import config

        config.TORCHVISION_AVAILABLE = False


def installed(name: str) -> str | None:
    """The version on the disk; None when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def normal(name: str) -> str:
    """The form in which PEP 503 compares names of packages."""
    return re.sub(r"[-_.]+", "-", name).lower()


def quoted(requirement: str) -> str:
    """As a shell takes it."""
    return f"'{requirement}'" if re.search(r"[<>=!~\[;]", requirement) else requirement


def _same(one: str, other: str) -> bool:
    """Equal but for the local part: 2.13.0+cu130 is 2.13.0."""
    try:
        return Version(one).public == Version(other).public
    except InvalidVersion:
        return one == other


def _clone() -> dict | None:
    """The [project] table of the clone that this package lies in; None where lorakit is installed."""
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return None
    return project if project.get("name") == "lorakit" else None
