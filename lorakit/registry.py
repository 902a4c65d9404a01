"""The folder is the registry: a task, format, metric, … is a file of a folder, found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from lorakit.errors import LorakitError, did_you_mean


def names(folder: str) -> list[str]:
    """Names of the files in `lorakit/<folder>/`, sorted."""
    package = importlib.import_module(f"lorakit.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def load(folder: str, name: str) -> ModuleType:
    """The module `lorakit/<folder>/<name>.py`. Raises `LorakitError` listing the files present."""
    present = names(folder)
    if name not in present:
        hint = did_you_mean(name, present)
        raise LorakitError(
            f"there is no '{name}' in {folder}/{hint} Present: {', '.join(present)}."
        )
    return importlib.import_module(f"lorakit.{folder}.{name}")


def defining(folder: str, function: str) -> list[str]:
    """Names of the files in `lorakit/<folder>/` that define this function, found without loading any."""
    package = importlib.import_module(f"lorakit.{folder}")
    return [
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if f"\ndef {function}(" in m.module_finder.find_spec(m.name).loader.get_source(m.name)
    ]


def modules(folder: str) -> dict[str, ModuleType]:
    """Every file of a folder by its name."""
    return {name: importlib.import_module(f"lorakit.{folder}.{name}") for name in names(folder)}
