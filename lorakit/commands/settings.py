"""The settings of a run from what a user typed: a RUN.yaml, or a data file and a model."""

from __future__ import annotations

import difflib
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from lorakit.commands import SET, argument
from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError
from lorakit.run import Run
from lorakit.runs.folder import RunFolder

SETTINGS = (".yaml", ".yml")
RUN = argument(
    "run",
    metavar="RUN.yaml|DATA",
    help="the settings of a run, or simply a data file, a folder or a hub id",
)
MODEL = argument("--model", metavar="NAME", help="a model's name, its folder, or its hub id")
NAME = argument("--name", metavar="NAME", help="name of the run; its folder is outputs/NAME")


def changes_of(options: Namespace) -> dict[str, Any]:
    """What --set, --model, --name and --processes say."""
    changes = {}
    for change in options.changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise LorakitError(f"--set {change}: expected NAME=VALUE")
        try:
            changes[name.strip()] = strict_yaml.load(value)
        except Exception:  # beside YAML's own errors its values raise almost anything
            raise LorakitError(f"--set {change}: the value cannot be read as YAML") from None
    for name in ("model", "name", "processes"):
        if getattr(options, name, None):
            changes[name] = getattr(options, name)
    return changes


def is_settings(path: str) -> bool:
    """Whether this file holds settings: a YAML file, or a JSON object that names its `data`."""
    if path.endswith(SETTINGS):
        return True
    if not path.endswith(".json") or not Path(path).is_file():
        return False
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("data"), str)


def read(options: Namespace) -> Run:
    """The run that a command is about. Raises `LorakitError` for what is not there, before anything heavy is loaded."""
    changes = changes_of(options)
    if (Path(options.run) / "record.json").is_file():
        run = following(Path(options.run), getattr(options, "continues", False), changes)
    elif is_settings(options.run):
        if not Path(options.run).is_file():
            cure = "write one with: lorakit init"
            raise missing(options.run, cure=cure)
        run = Run.read(options.run, **changes)
    else:
        run = Run(**{"name": named(options.run), **changes, "data": options.run})
    for name in ("data", "validation_data", "test_data"):
        present(getattr(run, name))
    return run


def following(folder: Path, wanted: bool, changes: dict[str, Any]) -> Run:
    """A run of its own that trains on from a finished one, with its settings but for `changes`."""
    if not wanted:
        raise LorakitError(
            "is a run",
            where=folder,
            cure=f"lorakit train {folder / 'run.yaml'} resumes it; lorakit train {folder} --continue trains on from it "
            "as a run of its own",
        )
    record = RunFolder.of(folder).record
    return Run(**{**record.get("settings", {}), "model": str(folder), **changes})


def named(data: str) -> str:
    """A run's name from its data: `data/my rows.csv.gz` is `my rows`."""
    stem = Path(data).name.split(".")[0]
    return re.sub(r"[^\w\- ]", "-", stem).strip("- ") or "run"


def present(data: Any) -> None:
    """Raises `LorakitError` for a path of a file that is not there; a hub id passes, as do several files."""
    path = Path(data) if data and isinstance(data, str) else None
    if not path or not path.suffix or path.exists() or "*" in path.name or "," in path.name:
        return
    if len(path.parts) != 2 or path.parent.is_dir():  # else `owner/name.v1` of the hub
        raise missing(str(data))


def missing(path: str, cure: str = "") -> LorakitError:
    """No such file, with the path of one whose name without the ending is nearly the same."""
    if Path(path).is_symlink():
        cure = "name the file itself"
        return LorakitError("is a link that leads to no file", where=path, value=path, cure=cure)
    folder = Path(path).parent
    names = sorted(p.name for p in folder.iterdir() if p.exists()) if folder.is_dir() else []
    stems = {name.partition(".")[0]: name for name in reversed(names)}
    near = difflib.get_close_matches(Path(path).name.partition(".")[0], stems, n=1, cutoff=0.6)
    hint = f"did you mean '{folder / stems[near[0]]}'?" if near else ""
    words = "; ".join(filter(None, [hint, cure]))
    return LorakitError(
        f"no such file (looked from {Path.cwd()})", where=path, value=path, cure=words or None
    )


def kept(run: Run) -> tuple[Run, Path]:
    """(the run, the RUN.yaml that says it): written beside its folder, under a name that no other run has."""
    for number in range(1, 10_000):
        name = run.name if number == 1 else f"{run.name}-{number}"
        one = run.with_(name=name)
        path = one.folder.with_name(f"{name}.yaml")
        if not path.exists() and not one.folder.exists():
            break
        if path.exists() and Run.read(path).given() == one.given():
            return one, path
    path.parent.mkdir(parents=True, exist_ok=True)
    write(one, path)
    return one, path


def write(run: Run, path: Path) -> None:
    """The settings that were given, as YAML to read and to edit."""
    text = strict_yaml.dump(run.given())
    head = f"# lorakit train {path}\n# Every setting is described by: lorakit settings\n"
    path.write_text(head + text, encoding="utf-8")


__all__ = ["MODEL", "NAME", "RUN", "SET", "changes_of", "is_settings", "kept", "read", "write"]
