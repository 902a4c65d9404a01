"""Compares installed versions and the floors of pyproject.toml with known holes: python docs/audit.py (`make audit`)

Works offline, from known_holes.json beside this file; where pip-audit is installed and reaches its service, that is
asked as well. Exit code 1 for a hole on a path that lorakit uses: `reached` says by what, and is null where `why` says
why not.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def holes() -> list[dict]:
    return json.loads(Path(__file__).with_name("known_holes.json").read_text(encoding="utf-8"))


def installed() -> dict[str, str]:
    """name -> version of what is installed here."""
    found = ((d.metadata["Name"], d.version) for d in metadata.distributions())
    return {canonicalize_name(name): version for name, version in found if name}


def floors(project: dict) -> dict[str, str]:
    """name -> the lowest version that any line of pyproject.toml admits."""
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    found: dict[str, str] = {}
    for line in map(Requirement, lines):
        low = next((s.version for s in line.specifier if s.operator in (">=", "==")), None)
        name = canonicalize_name(line.name)
        if low and (name not in found or Version(low) < Version(found[name])):
            found[name] = low
    return found


def open_holes(versions: dict[str, str]) -> list[dict]:
    """The holes of these versions on a path that lorakit uses."""
    return [
        {**hole, "version": versions[hole["package"]]}
        for hole in holes()
        if hole["reached"]
        and hole["package"] in versions
        and Version(versions[hole["package"]]) < Version(hole["fixed_in"])
    ]


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = 0
    for what, versions in (
        ("installed", installed()),
        ("admitted by pyproject.toml", floors(project)),
    ):
        for hole in open_holes(versions):
            found += 1
            print(
                f"{hole['package']} {hole['version']} is {what}: {hole['id']}, {hole['what']}, by {hole['reached']}; "
                f"fixed in {hole['fixed_in']}"
            )
    print(f"{found} of {len(holes())} known holes are open on a path that lorakit uses")
    if importlib.util.find_spec("pip_audit"):
        asked = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--local", "--progress-spinner=off"]
        )
        print(
            "pip-audit:",
            "nothing found" if asked.returncode == 0 else "see above, or it had no connection",
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
