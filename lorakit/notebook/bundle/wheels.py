"""The wheels of lorakit and of what it needs, fetched by pip for a machine that has no network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.files import temporary_folder
from lorakit.common.locations import ROOT

SOURCE_ALONE = ("rouge-score",)  # registries hold no wheel of it; one built here fits any machine


class Wanted:
    """Packages by name and version for one kind of machine; of another Python or platform than this only as wheels.

    Raises `LorakitError` with pip's last words.
    """

    def __init__(
        self,
        extras: Sequence[str],
        without: Collection[str],
        python: str = "",
        platform: str = "",
        *,
        more: Sequence[str] = (),
        there: Mapping[str, str] | None = None,
    ):
        """`more`: packages beside lorakit's own; `there`: name -> version of what the target holds already."""
        for extra in extras:
            if extra not in (known := metadata.metadata("lorakit").get_all("Provides-Extra") or ()):
                raise LorakitError(
                    f"--extra {extra}: lorakit has no such extra{did_you_mean(extra, known)}"
                )
        self.folder = temporary_folder()
        here = Path(self.folder.name)
        self.own = own(here)
        self.other = ["--python-version", python] if python else []
        self.other += [word for each in platforms(platform) for word in ("--platform", each)]
        if self.other:
            self.other += ["--only-binary", ":all:"]
            pip("wheel", "--wheel-dir", str(here), "--no-deps", *SOURCE_ALONE)
        target = (
            ["--target", str(here / "target")] if self.other else []
        )  # pip asks for one; nothing is written
        what = [f"{self.own}[{','.join(extras)}]" if extras else str(self.own), *more]
        pip(
            "install",
            "--dry-run",
            "--ignore-installed",
            *self.other,
            *target,
            "--find-links",
            str(here),
            "--report",
            str(here / "report.json"),
            *what,
        )
        report = json.loads((here / "report.json").read_text(encoding="utf-8"))
        self.versions, self.needs = needed(
            report, extras, without, python, more=more, there=there or {}
        )
        self.report = report

    def fetch(self, folder: Path) -> None:
        """Puts a wheel of each into `folder`; what comes as source is built."""
        here = self.folder.name
        pins = [
            f"{name}=={version}" for name, version in self.versions.items() if name != "lorakit"
        ]
        verb = ["download", "--dest"] if self.other else ["wheel", "--wheel-dir"]
        pip(*verb, str(folder), "--no-deps", *self.other, "--find-links", here, *pins)
        (folder / self.own.name).write_bytes(self.own.read_bytes())

    def members(self, extra: str) -> list[str]:
        """What an extra of lorakit's names."""
        from packaging.requirements import Requirement

        own = next(
            each["metadata"]
            for each in self.report["install"]
            if each["metadata"]["name"] == "lorakit"
        )
        named = [Requirement(line) for line in own.get("requires_dist", ())]
        return [
            one.name
            for one in named
            if one.marker
            and one.marker.evaluate({"extra": extra})
            and not one.marker.evaluate({"extra": ""})
        ]

    @property
    def bytes(self) -> int:
        """Room for them at most: unpacked, as far as they are installed here."""
        return sum(file.size or 0 for name in self.versions for file in _files(name))


def platforms(name: str) -> list[str]:
    """The tags whose wheels run there: glibc 2.28 runs what was built for 2.5 to 2.28 (PEP 600); pip knows the rest."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", name)
    if not found:
        return [name] if name else []
    older = {17: "2014", 12: "2010", 5: "1"}  # names of before PEP 600
    return [
        tag
        for minor in range(int(found[1]), 4, -1)
        for tag in (
            f"manylinux_2_{minor}_{found[2]}",
            *([f"manylinux{older[minor]}_{found[2]}"] if minor in older else []),
        )
    ]


def needed(
    report: dict[str, Any],
    extras: Sequence[str],
    without: Collection[str],
    python: str = "",
    *,
    more: Sequence[str] = (),
    there: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """(name -> version of lorakit and all that it needs, those of `without` that were met on the way, in order).

    What only they need is left out as well, and so is a package that the target holds (`there`: name -> version) in a
    version that serves whoever needs it. `report` is pip's own.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    known: dict[str, Any] = {
        canonicalize_name(each["metadata"]["name"]): each["metadata"] for each in report["install"]
    }
    held = {canonicalize_name(name): version for name, version in (there or {}).items()}
    environment = report["environment"] | (
        {"python_version": python, "python_full_version": f"{python}.0"} if python else {}
    )
    left = {canonicalize_name(name) for name in without}
    found, met, todo = set(), set(), [("lorakit", extra) for extra in ("", *extras)]
    todo += [(canonicalize_name(Requirement(one).name), "") for one in more]
    while todo:
        name, extra = todo.pop()
        if name in left:
            met.add(name)
        if name in left or (name, extra) in found or name not in known:
            continue
        found.add((name, extra))
        for line in known[name].get("requires_dist", ()):
            one = Requirement(line)
            if one.marker is not None and not one.marker.evaluate({**environment, "extra": extra}):
                continue
            version = held.get(canonicalize_name(one.name))
            if version and not one.extras and one.specifier.contains(version, prereleases=True):
                met.add(canonicalize_name(one.name))
            else:
                todo += [(canonicalize_name(one.name), e) for e in ("", *one.extras)]
    return {name: known[name]["version"] for name, _ in sorted(found)}, sorted(met)


def own(folder: Path) -> Path:
    """A wheel of this very lorakit: built from the clone it stands in, else packed again from what is installed."""
    if (ROOT / "pyproject.toml").is_file():
        pip("wheel", "--wheel-dir", str(folder), "--no-deps", str(ROOT))
        return next(folder.glob("lorakit-*.whl"))
    return packed_again(metadata.distribution("lorakit"), folder)


def packed_again(installed: metadata.Distribution, folder: Path) -> Path:
    """The wheel that a pure-Python package was installed from (https://packaging.python.org/en/latest/specifications/
    binary-distribution-format), without what the installer added."""
    added = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"}
    path = folder / f"{installed.metadata['Name']}-{installed.version}-py3-none-any.whl"
    record = io.StringIO()
    lines = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(installed.files or ()):
            inside = (
                file.parts[0].partition("-")[0] == installed.metadata["Name"]
                and "__pycache__" not in file.parts
            )
            if not inside or (file.parent.suffix == ".dist-info" and file.name in added):
                continue
            content = file.read_binary()
            wheel.writestr(file.as_posix(), content)
            digest = (
                base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            )
            lines.writerow([file.as_posix(), f"sha256={digest}", len(content)])
        name = f"{installed.metadata['Name']}-{installed.version}.dist-info/RECORD"
        lines.writerow([name, "", ""])
        wheel.writestr(name, record.getvalue())
    return path


def pip(*arguments: str) -> None:
    """Runs pip. Raises `LorakitError` with its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        said = [
            line for line in done.stdout.strip().splitlines() if not line.startswith("WARNING")
        ][-5:]
        cure = (
            "this environment has no pip: python -m ensurepip"
            if "No module named pip" in done.stdout
            else "Is the package registry reached, and has it wheels for this Python and platform?"
        )
        raise LorakitError("\n".join([f"pip {arguments[0]} failed:", *said, cure]))


def _files(name: str) -> Sequence[Any]:
    try:
        return metadata.files(name) or ()
    except metadata.PackageNotFoundError:
        return ()
