"""A Python that has what one extra of lorakit brings, and nothing else of what is installed here."""

import importlib.metadata
import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.paths import ROOT

SITE = """
import sys
from importlib.machinery import PathFinder

ABSENT = set({absent})


class OnlyTheExtra(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyTheExtra
"""


def brought(requirements: Iterable[str], extra: str = "") -> set[str]:
    """Names of the distributions that `requirements` bring along here, those of their own requirements included."""
    found: set[tuple[str, str]] = set()
    open_ones = [(Requirement(text), extra) for text in requirements]
    while open_ones:
        wanted, within = open_ones.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": within}):
            continue
        for key in ((canonicalize_name(wanted.name), e) for e in ("", *wanted.extras)):
            if key not in found:
                found.add(key)
                try:
                    needs = importlib.metadata.requires(key[0]) or []
                except importlib.metadata.PackageNotFoundError:
                    continue
                open_ones += [(Requirement(text), key[1]) for text in needs]
    return {name for name, _ in found}


def only_the_extra(extra: str, folder: Path) -> str:
    """The PYTHONPATH with which a new process finds nothing but lorakit, its requirements and those of `extra`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there = brought([*project["dependencies"], *project["optional-dependencies"][extra]])
    there |= {"lorakit", "pip", "setuptools"}
    absent = sorted(
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if not there & {canonicalize_name(name) for name in distributions}
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE.format(absent=json.dumps(absent)), "utf-8")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
