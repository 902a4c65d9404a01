"""Wheels of what a machine without a network lacks for `make gpu WHEELS=folder`, and no more than may be carried.

    python bench/wheels.py folder --python 3.12 --cuda 130 --installed packages.txt

`packages.txt` lists what that machine has, `name==version` or `name` a line, as `pip freeze` prints it. The wheels of
bitsandbytes hold its kernels for every CUDA version; only the one asked for stays.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TESTERS = ("pytest", "pytest-timeout")
MOST = 60 * 2**20  # bytes in all
GLIBC = (17, 24, 27, 28, 31, 34, 35)  # minor versions of glibc that a wheel may be built for
LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(cuda|rocm|xpu)(\w*)\.so")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="its Python version")
    parser.add_argument("--cuda", default="130", help="its CUDA version, digits alone")
    parser.add_argument("--installed", type=Path, help="a list of the packages that it has")
    given = parser.parse_args()
    has = installed(given.installed) if given.installed else set()
    given.folder.mkdir(parents=True, exist_ok=True)
    for requirement in lacking(has):
        download(requirement, given.folder, given.python)
    for wheel in given.folder.glob("bitsandbytes-*.whl"):
        slim(wheel, given.cuda)
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(given.folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 2**20:7.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:7.1f} MiB in {len(sizes)} wheels")
    if total > MOST:
        sys.exit(f"more than {MOST / 2**20:.0f} MiB: name more of what is there in --installed")


def installed(file: Path) -> set[str]:
    lines = (line.strip() for line in file.read_text().splitlines())
    names = (re.split(r"[=<>@\s]", line, maxsplit=1)[0] for line in lines if line[:1].isalnum())
    return {canonicalize_name(name) for name in names}


def lacking(has: set[str]) -> list[str]:
    """`name==version` of all that lorakit and its tests need on a card and `has` not, as installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    open_, found = [*map(Requirement, project["dependencies"]), *map(Requirement, TESTERS)], {}
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        if name in has or name in found or name == "torch":
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        distribution = metadata.distribution(name)
        found[name] = f"{name}=={distribution.version}"
        open_ += map(Requirement, distribution.requires or ())
    return sorted(found.values())


def download(requirement: str, folder: Path, python: str) -> None:
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += [f"--python-version={python}", "--implementation=cp", *platforms]
    command += ["--platform=manylinux2014_x86_64", "--dest", str(folder), requirement]
    subprocess.run(command, check=True)


def slim(wheel: Path, cuda: str) -> None:
    """Takes the libraries for other cards and CUDA versions out of a wheel, and rewrites its list of files."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        names = [info.filename for info in old.infolist()]
        libraries = {n: m for n in names if (m := LIBRARY.fullmatch(n))}
        kept = [n for n, m in libraries.items() if (m[1], m[2]) == ("cuda", cuda)]
        if not kept:
            versions = ", ".join(sorted(m[2] for m in libraries.values() if m[1] == "cuda"))
            part.unlink()
            sys.exit(f"{wheel.name} has no library for CUDA {cuda}; it has {versions}")
        record = next(n for n in names if n.endswith(".dist-info/RECORD"))
        lines = []
        for name in names:
            if name == record or (name in libraries and name not in kept):
                continue
            content = old.read(name)
            digest = (
                base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            )
            lines.append(f"{name},sha256={digest},{len(content)}")
            new.writestr(old.getinfo(name), content)
        new.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    part.replace(wheel)


if __name__ == "__main__":
    main()
