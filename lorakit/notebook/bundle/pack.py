"""A folder that trains without a network: wheels, base, data and notebook, with their SHA-256; a Kaggle data set too.

quickstart.ipynb         its parameters name the copies here, found at run time wherever the folder is attached
run.yaml                 the same as settings, where a RUN.yaml was packed
model/ data/ …           the copies, each in a folder of its setting's name; `tiny` is inside lorakit's wheel
wheels/                  lorakit and what it needs
install_lorakit.py       `install.py`: installs from wheels/ alone
bundle.json              the manifest: what for, what is left out, size and SHA-256 of every file
dataset-metadata.json    for Kaggle's command, which keeps it to itself: not in the manifest
README.md
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.files import atomic_write, sweep
from lorakit.common.locations import ASSETS
from lorakit.data.sources import Source
from lorakit.machine.hardware import HELD
from lorakit.machine.packages import specified
from lorakit.notebook.bundle import installer
from lorakit.notebook.bundle.contents import DATA, gathered, last_name
from lorakit.notebook.bundle.rewrite import first_cell, notebook_of, rewritten
from lorakit.notebook.bundle.wheels import Wanted
from lorakit.notebook.execute import refuse, value_of
from lorakit.notebook.rehearse import parameters
from lorakit.run import Run

ATTACHED = "/kaggle/input"
HOSTS = {
    "colab": ("3.13", "manylinux_2_35_x86_64"),
    "kaggle": ("3.12", "manylinux_2_35_x86_64"),
}  # Python and platform of the images in assets/hosts/
INSTALLER, KAGGLE = "install_lorakit.py", "dataset-metadata.json"
RUNNER = "notebooks"  # the extra whose wheels come along: what runs a notebook, and what its cells draw with


def bundle(
    what: str | os.PathLike,
    out: str | os.PathLike | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    without: Collection[str] = HELD,
    extras: Sequence[str] = (),
    python: str = "",
    platform: str = "",
    name: str = "",
    host: str = "",
    say: Any = print,
) -> Path:
    """The folder, `outputs/bundle/<name of the notebook or of the RUN.yaml>` unless `out` names one.

    `changes` are settings or parameters; `without` what the target has already; `extras` those of lorakit that the
    notebook needs, e.g. images; `python` ("3.12") and `platform` ("manylinux_2_35_x86_64") the target's, where they
    are not this machine's; `name` Kaggle's OWNER/NAME; `host`, colab or kaggle, stands for
    Python, platform and packages of that image. Raises `LorakitError` for what is missing, before anything is
    written, and when pip fails; a bundle that was cut leaves nothing.
    """
    path = Path(what)
    name = _slug(path, name)
    settings = _settings(path, changes or {})
    target = Path(out or Path("outputs/bundle") / path.stem)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LorakitError(
            f"{target}: is there and not empty; remove it, or name another folder with --out"
        )
    files, sets, placed = gathered(settings)
    say("asking pip what lorakit needs …")
    there: dict[str, str] = {}
    if host:
        python, platform, there = image_of(host)
    more = asked_for(path)
    shown = () if host else (RUNNER,)  # a hosted image shows its notebooks itself
    wheels = Wanted([*extras, *shown], without, python, platform, more=more, there=there)
    room(target, files, wheels.bytes)
    sweep(target.parent, glob.escape(target.name))
    with atomic_write(target, "name another folder with --out, then start again") as part:
        part.mkdir()
        left = (
            f", without {', '.join(wheels.needs)}: the target must have it" if wheels.needs else ""
        )
        say(f"fetching {len(wheels.versions)} wheels{left} …")
        wheels.fetch(part / "wheels")
        _copy(part, files, sets)
        about = {
            "lorakit": wheels.versions["lorakit"],
            "python": python or installer.machine()[0],
            "platform": platform or installer.machine()[1],
            "extras": list(extras),
            "needs": wheels.needs,
            "lends": [] if host else wheels.members(RUNNER),
            "start": _start(path, part, settings, placed),
            "copies": _copies(settings, placed),
            "packages": wheels.versions,
        }
        _describe(part, about, name, path.suffix != ".ipynb")
    return target


def _copy(part: Path, files: Mapping[str, Path], sets: Mapping[str, Source]) -> None:
    for place, file in files.items():
        (part / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, part / place)
    for place, each in sets.items():
        each.module.save(each.path, part / place, **each.options)


def _copies(settings: Mapping[str, Any], placed: Mapping[str, Any]) -> dict[str, str]:
    """Of what is at the hub its id, of a file or a folder the name: a data set may become public."""
    return {
        placed[key]: last_name(settings[key]) if Path(settings[key]).exists() else settings[key]
        for key in ("model", *DATA)
        if key in placed
    }


def image_of(host: str) -> tuple[str, str, dict[str, str]]:
    """(Python, platform, name -> version of the packages) of a hosted image. Raises `LorakitError` for another name."""
    if host not in HOSTS:
        raise LorakitError(
            f"--for {host}: not a hosted image{did_you_mean(host, HOSTS)}",
            setting="for",
            value=host,
            cure=f"choose {' or '.join(HOSTS)}",
        )
    lines = (ASSETS / "hosts" / f"{host}.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.strip().partition("==") for line in lines if "==" in line and " @ " not in line)
    return *HOSTS[host], {name: version for name, _, version in pins}


def asked_for(path: Path) -> list[str]:
    """The packages that a notebook installs by `lorakit.install_missing("name", …)`, as pip takes them."""
    if path.suffix != ".ipynb":
        return []
    text = path.read_text(encoding="utf-8")
    calls = re.findall(r"lorakit\.install_missing\(([^)]*)\)", text)
    names = [name for call in calls for name in re.findall(r"[\w.-]+", call.replace("\\", ""))]
    return [f"{r.name}{r.specifier}" for r in specified(names)]


def verify(folder: str | os.PathLike) -> str:
    """A line that says how much is as it was packed. Raises `LorakitError` naming each file that is not."""
    folder = Path(folder)
    try:
        files = installer.manifest(folder)["files"]
    except SystemExit as error:
        raise LorakitError(str(error)) from None
    if broken := installer.flaws(folder, files):
        raise LorakitError(
            "\n".join(
                [
                    f"{folder}: {len(broken)} of {len(files)} files differ from the manifest; copy "
                    "or upload the bundle again",
                    *broken,
                ]
            )
        )
    return f"{folder}: {len(files)} files, {sum(f['bytes'] for f in files.values()) / 1e6:,.1f} MB, all as packed"


def unpacked(path: str) -> str:
    """The bundle's copy of what a packed notebook names, or the path itself where no bundle here has one.

    Bundles are looked for in this folder, those above it, those in it, and among what is attached on Kaggle.
    """
    here = Path.cwd()
    places = [
        *(p / installer.MANIFEST for p in (here, *here.parents)),
        *here.glob(f"*/{installer.MANIFEST}"),
        *sorted(Path(ATTACHED).glob(f"**/{installer.MANIFEST}")),
    ]
    return next(
        (str(p.parent / path) for p in places if p.is_file() and (p.parent / path).exists()), path
    )


def room(target: Path, files: Mapping[str, Path], wheels: int) -> None:
    """Raises `LorakitError` when the disk has not enough for the copies and the wheels."""
    home = target.absolute()
    while not home.exists():
        home = home.parent
    wanted, free = (
        sum(file.stat().st_size for file in files.values()) + wheels,
        shutil.disk_usage(home).free,
    )
    if wanted > free:
        raise LorakitError(
            f"{target}: needs up to {wanted / 1e9:.1f} GB (wheels {wheels / 1e9:.1f}), and {home} has "
            f"{free / 1e9:.1f} GB left; free some space, or name a folder on another disk with --out"
        )


def _settings(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    if path.suffix != ".ipynb":
        return Run.read(path, **changes).given()
    known = parameters(path)
    refuse(path, changes, known)
    return {
        **known,
        **{
            k: value_of(k, v, repr(known[k])) if isinstance(v, str) else v
            for k, v in changes.items()
        },
    }


def _start(path: Path, part: Path, settings: Mapping[str, Any], placed: Mapping[str, Any]) -> str:
    """Writes what is opened or run; the notebook's name."""
    if path.suffix == ".ipynb":
        content = json.loads(path.read_text(encoding="utf-8"))
    else:
        settings = {k: v for k, v in settings.items() if k != "output_dir"}
        text = strict_yaml.dump({**settings, **placed})
        (part / "run.yaml").write_text(text, encoding="utf-8")
        content = notebook_of({"name": Run.model_fields["name"].default, **settings})
    paths = [key for key in ("model", *DATA) if key in placed]
    # Relative, as in most notebooks, it is beside what is open: on Kaggle in /kaggle/working.
    where = (
        {"output_dir": "outputs"} if Path(settings.get("output_dir") or "").is_absolute() else {}
    )
    content = rewritten(content, {**settings, **placed, **where}, paths)
    setup: dict[str, Any] = next(
        (c for c in content["cells"] if "LORAKIT_SOURCE = " in "".join(c["source"])), {}
    )
    meant = first_cell(f"bundle:{installer.pin(listed(part))}")  # this bundle and no other
    setup["source"] = meant.splitlines(keepends=True)
    start = f"{path.stem}.ipynb"
    (part / start).write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return start


def _slug(path: Path, name: str) -> str:
    """Kaggle's name of the data set: OWNER/NAME, of 6 to 50 letters, digits and dashes."""
    if name and not re.fullmatch(r"[\w-]+/[a-z0-9-]{6,50}", name):
        raise LorakitError(
            f"--name {name}: Kaggle names a data set OWNER/NAME, NAME of 6 to 50 small letters, digits "
            "and dashes"
        )
    words = re.sub("[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    return name or f"INSERT_OWNER_HERE/{f'lorakit-{words}'[:50].strip('-')}"


def _describe(part: Path, about: dict[str, Any], name: str, settings: bool) -> None:
    """Installer, README, Kaggle's metadata and, last, the manifest of all that lies there."""
    shutil.copyfile(installer.__file__, part / INSTALLER)
    (part / "README.md").write_text(_readme(about, name, settings), encoding="utf-8")
    # https://github.com/Kaggle/kaggle-api/blob/main/docs/datasets_metadata.md: a title of 6 to 50 characters
    (part / KAGGLE).write_text(
        json.dumps(
            {
                "title": f"lorakit {name.rpartition('/')[2].removeprefix('lorakit-')}"[:50],
                "id": name,
                "licenses": [{"name": "other"}],
                "description": "Packed by lorakit to train without internet. The wheels, the "
                "base model and the data keep their own licences.",
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    files = listed(part)
    (part / installer.MANIFEST).write_text(
        json.dumps({**about, "files": files}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def listed(part: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file of a bundle, as its manifest lists them."""
    return {
        path.relative_to(part).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": installer.digest(path),
        }
        for path in sorted(part.rglob("*"))
        if path.is_file() and path.name != KAGGLE
    }


def _readme(about: Mapping[str, Any], name: str, settings: bool) -> str:
    needs = f", and {', '.join(about['needs'])} installed already" if about["needs"] else ""
    yaml_too = ", or `cd` here and `lorakit train run.yaml`" if settings else ""
    return f"""# {about["start"].removesuffix(".ipynb")}, to be run without internet

1. Needs Python {about["python"]} on {about["platform"]}{needs}. In `wheels/`: lorakit {about["lorakit"]} and all else.
2. To Kaggle: put your name into `{KAGGLE}` ({name}), then `kaggle datasets create -p . --dir-mode zip --keep-tabular`.
3. There: import `{about["start"]}`, attach the data set, internet off, run all; results in `/kaggle/working/outputs`.
4. Elsewhere: `python {INSTALLER}`, then here `jupyter lab` or `lorakit run {about["start"]}`{yaml_too}.
5. Is it whole? `python {INSTALLER} --verify` compares every file with `{installer.MANIFEST}`.
"""
