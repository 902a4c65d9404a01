"""The folder is the registry: a task, format, metric, … is a file of a folder, found by its name."""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import lru_cache
from types import ModuleType

from lorakit.common.errors import LorakitError, did_you_mean

# What can be extended by adding a file -> the package that the file belongs to.
PACKAGES = {
    "formats": "lorakit.data.formats",
    "schemas": "lorakit.data.schemas",
    "checks": "lorakit.data.quality",
    "models": "lorakit.models.families",
    "tasks": "lorakit.tasks",
    "engines": "lorakit.engines",
    "metrics": "lorakit.results.metrics",
    "logs": "lorakit.results.logs",
    "trackers": "lorakit.training.trackers",
    "export": "lorakit.exporting.targets",
}


def names(folder: str) -> list[str]:
    """Names of the entries of a package of `PACKAGES`, sorted: its files but for its `HELPERS`."""
    package = importlib.import_module(PACKAGES[folder])
    helpers = getattr(package, "HELPERS", ())
    changed = tuple(os.stat(path).st_mtime_ns for path in package.__path__)
    return [name for name in _files(tuple(package.__path__), changed) if name not in helpers]


@lru_cache(maxsize=64)
def _files(paths: tuple[str, ...], changed: tuple[int, ...]) -> list[str]:
    """Names of the modules in these folders, sorted; listed again when a folder has changed."""
    return sorted(module.name for module in pkgutil.iter_modules(list(paths)))


def load(folder: str, name: str) -> ModuleType:
    """The module `<name>.py` of a package of `PACKAGES`. Raises `LorakitError` listing the files present."""
    present = names(folder)
    if name not in present:
        hint = did_you_mean(name, present)
        raise LorakitError(
            f"there is no '{name}' in {folder}/{hint} Present: {', '.join(present)}."
        )
    return importlib.import_module(f"{PACKAGES[folder]}.{name}")


def defining(folder: str, function: str) -> list[str]:
    """Names of the entries that define this function, found without loading any."""
    package = importlib.import_module(PACKAGES[folder])
    return [
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if m.name in names(folder)
        and f"\ndef {function}(" in m.module_finder.find_spec(m.name).loader.get_source(m.name)
    ]


def modules(folder: str) -> dict[str, ModuleType]:
    """Every file of a folder by its name."""
    return {name: importlib.import_module(f"{PACKAGES[folder]}.{name}") for name in names(folder)}
