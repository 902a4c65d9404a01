"""Registries: a task, format, metric, … is one file in a folder, found by its name.

The folders are those of the package and of plug-ins. A plug-in is a folder laid out like `PACKAGES`, e.g.
`my_plugins/metrics/brevity.py`. The environment variable `LORAKIT_PLUGINS` names such folders, separated as in `PATH`,
and child processes read it too; an installed package names its own in the entry-point group `lorakit.plugins`, whose
values are packages with these sub-folders.

A package may name its files' interface: `INTERFACE`, a Protocol class. What its body gives a value is optional, and a
file without it gets that value; every other member is required.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache, lru_cache
from importlib import metadata, util
from pathlib import Path
from types import FunctionType, ModuleType

from lorakit.common.errors import LorakitError, did_you_mean, first_line

# What can be extended by adding a file -> the package that the file belongs to.
PACKAGES = {
    "formats": "lorakit.data.formats",
    "schemas": "lorakit.data.schemas",
    "checks": "lorakit.data.quality",
    "models": "lorakit.models.families",
    "tasks": "lorakit.tasks",
    "objectives": "lorakit.tasks.objectives",
    "engines": "lorakit.engines",
    "quantization": "lorakit.engines.quantization",
    "metrics": "lorakit.results.metrics",
    "logs": "lorakit.results.logs",
    "evidence": "lorakit.results.evidence",
    "trackers": "lorakit.training.trackers",
    "export": "lorakit.exporting.targets",
}
KINDS = {"export": "export format", "logs": "reader of logs"}  # one of a folder, in words
PLUGINS = "LORAKIT_PLUGINS"  # environment variable: folders, separated by os.pathsep
GROUP = "lorakit.plugins"  # entry-point group


def names(folder: str) -> list[str]:
    """Names of the entries of a registry, sorted: the files of its folders but for the package's `HELPERS`."""
    package = _package(folder)
    helpers = vars(package).get("HELPERS", ())
    changed = tuple(os.stat(path).st_mtime_ns for path in package.__path__)
    return [name for name in _files(tuple(package.__path__), changed) if name not in helpers]


@lru_cache(maxsize=64)
def _files(paths: tuple[str, ...], changed: tuple[int, ...]) -> list[str]:
    """Names of the modules in these folders, sorted; listed again when a folder has changed."""
    return sorted(module.name for module in pkgutil.iter_modules(list(paths)))


def load(folder: str, name: str) -> ModuleType:
    """The file `<name>.py` of a registry. Raises `LorakitError` when there is none, or when it breaks the interface."""
    package, present = _package(folder), names(folder)
    if name not in present:
        near, listed = did_you_mean(name, present), ", ".join(present)
        raise LorakitError(
            f"there is no {KINDS.get(folder, folder.removesuffix('s'))} {name!r}{near}",
            setting=folder,
            value=name,
            cure=f"use one of {listed}",
        )
    try:
        module = importlib.import_module(f"{package.__name__}.{name}")
    except (ImportError, SyntaxError) as error:
        found = util.find_spec(f"{package.__name__}.{name}")
        file = str(found.origin if found else name)
        if _built_in(file):
            raise
        raise LorakitError(
            f"the plug-in cannot be imported: {first_line(error)}",
            where=file,
            cure=f"correct it, or take its folder out of {PLUGINS}",
        ) from None
    interface = vars(package).get("INTERFACE")
    return module if interface is None else completed(module, interface)


def modules(folder: str) -> dict[str, ModuleType]:
    """Every file of a registry by its name."""
    return {name: load(folder, name) for name in names(folder)}


def completed(module: ModuleType, interface: type) -> ModuleType:
    """The module with the interface's defaults for what it leaves out. Raises `LorakitError` for a missing member."""
    members = vars(interface)
    methods = {n for n, v in members.items() if isinstance(v, FunctionType) and n[0] != "_"}
    for name in sorted({*methods, *interface.__annotations__} - vars(module).keys()):
        if name not in members or name not in interface.__annotations__:
            raise LorakitError(
                f"the plug-in lacks {name!r}",
                where=module.__file__,
                cure=f"define what {interface.__module__}.{interface.__name__} requires",
            )
        setattr(module, name, members[name])
    return module


def plugin_folders() -> list[Path]:
    """The folders of all plug-ins. Raises `LorakitError` for one that is not there."""
    found = [Path(p).absolute() for p in os.environ.get(PLUGINS, "").split(os.pathsep) if p]
    for folder in found:
        if not folder.is_dir():
            raise LorakitError(
                f"{PLUGINS}={os.environ[PLUGINS]!r}: {folder} is no folder",
                setting=PLUGINS,
                value=str(folder),
                cure="name folders that hold formats/, metrics/, tasks/, … of your own",
            )
    return [*found, *_installed()]


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of installed plug-ins, which are not imported."""
    specs = [util.find_spec(point.value) for point in metadata.entry_points(group=GROUP)]
    return tuple(Path(p) for s in specs for p in (s and s.submodule_search_locations) or ())


def _package(folder: str) -> ModuleType:
    """The package of a registry, whose search path ends with the plug-ins' folders of that name."""
    package = importlib.import_module(PACKAGES[folder])
    own = [place for place in package.__path__ if _built_in(place)]
    places = [str(p / folder) for p in plugin_folders() if (p / folder).is_dir()]
    present = {m.name for m in pkgutil.iter_modules(own)} if places else set()
    for module in pkgutil.iter_modules(places):
        if module.name in present:
            raise LorakitError(
                f"{folder}/ has a file {module.name!r} already",
                where=", ".join(places),
                cure="give the plug-in's file another name",
            )
    if package.__path__ != own + places:
        package.__path__[:] = own + places
        importlib.invalidate_caches()
    return package


@cache
def _built_in(path: str) -> bool:
    return Path(__file__).parents[1] in Path(path).parents
