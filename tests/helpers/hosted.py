"""A notebook opened where lorakit is not installed: an environment on top of another's packages, and how lorakit gets there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROUTES = ("wheel", "address", "clone", "bundle")
DOWNLOADED = re.compile(r"(?:Downloading|Using cached) \S+ \(([\d.]+) (bytes|kB|MB)\)")
LOCAL = re.compile(r"Processing (/\S+\.whl)")
UNITS = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0}
NO_NETWORK = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def site_packages(environment: Path) -> Path:
    (site,) = environment.glob("lib/python3*/site-packages")
    return site


def overlay(image: Path, folder: Path) -> Path:
    """The interpreter of a new environment that sees the packages of `image` but lorakit; nothing is written into that.

    It sees them as links in a folder of its own: pip replaces nothing that lies outside its environment.
    """
    subprocess.run([image / "bin/python", "-m", "venv", "--without-pip", folder], check=True)
    packages = folder / "image"
    packages.mkdir()
    for entry in site_packages(image).iterdir():
        if entry.suffix == ".pth" and "lorakit" not in entry.name:
            shutil.copy(entry, site_packages(folder))
        elif not entry.name.startswith(("lorakit", "__editable__", "_editable_impl_lorakit")):
            (packages / entry.name).symlink_to(entry)
    first = "0-image.pth"  # the others import packages of the image; files are read in the order of their names
    (site_packages(folder) / first).write_text(f"{packages}\n")
    return folder / "bin/python"


def kernel(python: Path, folder: Path) -> None:
    """A kernel of that interpreter under the name `hosted`, where JUPYTER_PATH is `folder`."""
    target = folder / "kernels/hosted"
    target.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "hosted", "language": "python"}
    (target / "kernel.json").write_text(json.dumps(about))


def wheel(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(ROOT)], check=True)
    (made,) = folder.glob("lorakit-*.whl")
    return made


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def laid(
    route: str, name: str, folder: Path, wheel: Path | None = None, host: str = "", **values: Any
) -> Path:
    """The notebook `name` in the new `folder` as someone opens it, lorakit within its reach by this route:

    wheel: its wheel lies beside the notebook; address: the notebook was stamped by `make publish-links`; clone: the
    repository lies beside it, as after `!git clone` in /content; bundle: attached, made for `host`, else for this
    environment, with `values`.
    """
    folder.mkdir()
    source = ROOT / "notebooks" / f"{name}.ipynb"
    if route == "wheel" and wheel:
        shutil.copy(wheel, folder)
    elif route == "wheel":
        globals()["wheel"](folder)
    elif route == "clone":
        git(folder, "clone", "--quiet", str(ROOT), "lorakit")
    elif route == "address":
        elsewhere = folder.with_name(f"{folder.name}-remote")
        git(folder, "clone", "--quiet", str(ROOT), str(elsewhere / "copy"))
        git(elsewhere / "copy", "clone", "--quiet", "--bare", str(ROOT), str(elsewhere / "it.git"))
        git(elsewhere / "copy", "remote", "set-url", "origin", str(elsewhere / "it.git"))
        stamp = ["docs/publish_links.py", "--ref", git(ROOT, "rev-parse", "HEAD")]
        subprocess.run([sys.executable, *stamp], cwd=elsewhere / "copy", check=True)
        source = elsewhere / "copy/notebooks" / source.name
    else:
        from lorakit.machine.hardware import HELD
        from lorakit.notebook.bundle.pack import bundle

        there = HELD if host else {d.name for d in metadata.distributions()} - {"lorakit"}
        quiet = {"say": lambda _: None}
        made = bundle(source, folder / "attached", values, host=host, without=there, **quiet)
        return Path(shutil.copy(made / source.name, folder))
    return Path(shutil.copy(source, folder))


@dataclass(frozen=True)
class Seen:
    """What an execution left: errors, lines on stderr, output of the first cell, its seconds, megabytes fetched by pip."""

    errors: list[str]
    noise: list[str]
    first: str
    seconds: float
    megabytes: float
    text: str

    def unmentioned(self, python: Path) -> list[str]:
        """Packages of the image that were replaced, and of which no output says so."""
        environment = python.parents[1]
        held = {_package(path) for path in (environment / "image").glob("*.dist-info")}
        now = {_package(path) for path in site_packages(environment).glob("*.dist-info")}
        return sorted(name for name in held & now if f"{name} " not in self.text)


def _package(path: Path) -> str:
    return re.sub(r"[-_.]+", "-", path.name.partition("-")[0]).lower()


def execute(
    notebook: Path, values: Mapping[str, Any], jupyter: Path, *, network: bool = True
) -> Seen:
    """Executes it in its own folder with the kernel `hosted`."""
    folder = notebook.parent
    target, log = folder / "executed.ipynb", folder / "pip.log"
    settings = folder / "parameters.yaml"
    settings.write_text(json.dumps(dict(values)))
    command = [sys.executable, "-m", "papermill", str(notebook), str(target), "--kernel", "hosted"]
    command += ["--cwd", str(folder), "--no-progress-bar", "--parameters_file", str(settings)]
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    outside |= {"JUPYTER_PATH": str(jupyter), "PIP_LOG": str(log), "PIP_NO_CACHE_DIR": "1"}
    done = subprocess.run(
        [*(() if network else NO_NETWORK), *command],
        cwd=folder,
        env=outside,
        capture_output=True,
        text=True,
    )
    if not target.is_file():
        return Seen([done.stderr.strip().splitlines()[-1]], [], "", 0.0, 0.0, "")
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    errors = [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
    if done.returncode and not errors:
        errors = done.stderr.strip().splitlines()[-1:]
    noise = ["".join(o["text"]).strip() for o in outputs if o.get("name") == "stderr"]
    return Seen(
        errors,
        [line for text in noise for line in text.splitlines()],
        _text(first["outputs"]),
        first["metadata"].get("papermill", {}).get("duration") or 0.0,
        fetched(log.read_text(encoding="utf-8")) if log.is_file() else 0.0,
        _text(outputs),
    )


def _text(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(o.get("text", "")) for o in outputs).strip()


def fetched(log: str) -> float:
    """Megabytes of the wheels that pip took, by its log; those of lorakit do not count."""
    total = sum(float(size) * UNITS[unit] for size, unit in DOWNLOADED.findall(log))
    for path in {p for p in LOCAL.findall(log) if not Path(p).name.startswith("lorakit-")}:
        with contextlib.suppress(OSError):
            total += Path(path).stat().st_size / 1e6
    return total
