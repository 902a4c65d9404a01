"""What a notebook's first cell does once lorakit can be imported: installs what lorakit needs and this machine lacks.

A hosted image holds hundreds of packages that fit each other. pip may add to them, and replaces only those that lorakit
cannot run with; torch is never touched.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.common.quiet import quiet
from lorakit.machine.hardware import HELD
from lorakit.machine.packages import (
    Unmet,
    declared,
    normal,
    replaced,
    specified,
    unmet,
    version_of_lorakit,
)
from lorakit.notebook.bundle import installer

RESTART = (
    "restart the session (Colab: Runtime → Restart session; Kaggle: Run → Restart & clear cell "
    "outputs; Jupyter: Kernel → Restart), then run this cell first"
)


def install_missing(*names: str) -> None:
    """Installs lorakit's requirements and the packages `names` where they are missing or too old, and says so.

    From the wheels of a bundle where one is attached, else by pip. Does nothing, silently, when all is there. Raises
    `LorakitError` when pip fails, and when a package was replaced that this process has imported already. From then on
    this process shows no known message that tells a user nothing.
    """
    quiet()
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
    bundle = _bundle()
    wanted = [u.requirement for u in lacking]
    changing = {normal(u.name) for u in lacking}
    # First with every other package kept as it is; then with torch alone kept, should nothing fit.
    for kept in (
        {n: v for n, v in before.items() if n not in changing},
        {n: v for n, v in before.items() if n.startswith((*HELD, "nvidia-", "triton"))},
    ):
        message = _pip(bundle, wanted, kept)
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


def _pip(bundle: Path | None, wanted: list[str], kept: dict[str, str]) -> str:
    """Runs `pip install`; returns its last lines when it fails, else an empty string."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.writelines(f"{name}=={version}\n" for name, version in kept.items())
    try:
        if bundle:
            files = installer.manifest(bundle)["files"]
            said = installer.install_hashed(bundle, files, wanted, file.name)
        else:
            said = installer.pip(f"--constraint={file.name}", *wanted)
    finally:
        Path(file.name).unlink()
    return "\n".join(said.strip().splitlines()[-5:])


def _versions() -> dict[str, str]:
    """Every installed package."""
    found: dict[str, str] = {}
    for each in metadata.distributions():
        if name := each.metadata["Name"]:
            found.setdefault(normal(name), each.version)
    found.pop("lorakit", None)
    return found


def _bundle() -> Path | None:
    """The bundle that lorakit was installed from, else the first near this notebook, or attached on Kaggle, that was
    made with this version of lorakit.

    Raises `LorakitError` where its wheels are not those that its manifest lists.
    """
    here, named = Path.cwd(), os.environ.get("LORAKIT_BUNDLE")
    places = [here, *here.parents, *here.glob("*/")]
    places += [p for n in range(1, 5) for p in Path("/kaggle/input").glob("/".join("*" * n))]
    for folder in [Path(named)] if named else places:
        if not (folder / installer.MANIFEST).is_file():
            continue
        try:
            packed = installer.manifest(folder)
        except SystemExit as error:
            raise LorakitError(str(error), where=folder) from None
        if packed["lorakit"] != version_of_lorakit():
            continue
        wheels = {k: v for k, v in packed["files"].items() if k.startswith("wheels/")}
        if broken := installer.flaws(folder, wheels):
            raise LorakitError(
                f"wheels of this bundle are not as packed: {broken[0]}",
                where=folder,
                cure="copy or upload the bundle again",
            )
        print(f"from the bundle {folder}")
        return folder
    return None
