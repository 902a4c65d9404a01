"""What a notebook's first cell does once lorakit can be imported: installs what lorakit needs and this machine lacks.

A hosted image holds hundreds of packages that fit each other. pip may add to them, and replaces only those that lorakit
cannot run with; torch is never touched.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import HELD
from lorakit.machine.packages import (
    Unmet,
    declared,
    normal,
    replaced,
    specified,
    unmet,
)

RESTART = (
    "restart the session (Colab: Runtime → Restart session; Kaggle: Run → Restart & clear cell "
    "outputs; Jupyter: Kernel → Restart), then run this cell first"
)


def install_missing(*names: str) -> None:
    """Installs lorakit's requirements and the packages `names` where they are missing or too old, and says so.

    From the wheels of a bundle where one is attached, else by pip. Does nothing, silently, when all is there. Raises
    `LorakitError` when pip fails, and when a package was replaced that this process has imported already.
    """
    lacking = unmet([*declared(), *specified(names)])
    if lacking:
        _install(lacking)
    if stale := replaced():
        raise LorakitError(
            "; ".join(
                f"this session has imported {name} {loaded}, and {here} is installed now"
                for name, loaded, here in stale
            ),
            value=[name for name, *_ in stale],
            cure=RESTART,
        )


def _install(lacking: Sequence[Unmet]) -> None:
    before, began = _versions(), time.monotonic()
    print(f"installing {', '.join(u.name for u in lacking)} (up to a minute) …", flush=True)
    wheels = _bundled_wheels()
    source = ["--no-index", *(f"--find-links={folder}" for folder in wheels)] if wheels else []
    wanted = [u.requirement for u in lacking]
    changing = {normal(u.name) for u in lacking}
    # First with every other package kept as it is; then with torch alone kept, should nothing fit.
    for kept in (
        {n: v for n, v in before.items() if n not in changing},
        {n: v for n, v in before.items() if n.startswith((*HELD, "nvidia-", "triton"))},
    ):
        message = _pip([*source, *wanted], kept)
        if not message:
            break
    else:
        raise LorakitError(
            f"pip could not install {', '.join(wanted)}:\n{message}",
            value=wanted,
            cure="on Kaggle turn the internet on (Settings → Internet), or attach a folder made by "
            "`lorakit bundle NOTEBOOK`",
        )
    importlib.invalidate_caches()
    after = _versions()
    added = sorted(after.keys() - before.keys())
    changed = [f"{n} {before[n]} → {after[n]}" for n in sorted(before) if after.get(n) != before[n]]
    print(
        f"installed in {time.monotonic() - began:.0f} s: {', '.join(added) or 'nothing new'}"
        f"; replaced: {', '.join(changed) or 'nothing'}"
    )


def _pip(arguments: Sequence[str], kept: dict[str, str]) -> str:
    """Runs `pip install`; returns its last lines when it fails, else an empty string."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.writelines(f"{name}=={version}\n" for name, version in kept.items())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--constraint", file.name, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        Path(file.name).unlink()
    return "\n".join(done.stdout.strip().splitlines()[-5:]) if done.returncode else ""


def _versions() -> dict[str, str]:
    """Every installed package."""
    found: dict[str, str] = {}
    for each in metadata.distributions():
        if name := each.metadata["Name"]:
            found.setdefault(normal(name), each.version)
    found.pop("lorakit", None)
    return found


def _bundled_wheels() -> list[Path]:
    """The folders of wheels of bundles near this notebook, or attached on Kaggle."""
    here = Path.cwd()
    places = [here, *here.parents, *here.glob("*/")]
    places += [p for n in range(1, 5) for p in Path("/kaggle/input").glob("/".join("*" * n))]
    return [p / "wheels" for p in places if (p / "bundle.json").is_file()]
