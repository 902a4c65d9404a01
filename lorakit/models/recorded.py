"""The base and the saved files of a run, found and compared with what its record says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.models import identity
from lorakit.models.derived import derived
from lorakit.run import Run
from lorakit.runs.folder import FORMAT, RunFolder
from lorakit.runs.status import Status

OPTION = "--model"  # of the commands, where the base lies elsewhere now


def find_base(
    folder: RunFolder, run: Run, record: dict[str, Any], model: str | None
) -> tuple[str, list[str]]:
    """(where the base of a run lies now, notes). The first place whose content is the recorded one.

    Looked for under `model` alone where it is given, else as the settings name it, where it lay, and in the same
    place relative to the run's folder.
    """
    noted = record.get("base") or {}
    wanted = identity.Base(noted.get("weights"), noted.get("config"))
    if wanted == identity.Base(None, None):  # recorded before configurations were
        known = record.get("base_sha256")
        wanted = identity.Base(known if known and len(known) == 64 else None, None)
    places = [model] if model else [run.model, noted.get("path")]
    if noted.get("relative") and not model:
        places.append(os.path.normpath(folder.path / noted["relative"]))
    missing, other = [], []
    for place in dict.fromkeys(p for p in places if p):
        try:
            found = identity.base(place)
        except LorakitError as error:
            missing.append(str(error))
            continue
        if differing := found.differences(wanted):
            other.append((place, differing))
            continue
        notes = [] if place == run.model else [f"the base was found in {place}"]
        if wanted.weights is None or found.weights is None:
            notes.append(f"the weights of {place} could not be compared with those tuned on")
        return derived(run.with_(model=place)).model, notes
    raise _refused(folder, run, model, missing, other)


def _refused(
    folder: RunFolder,
    run: Run,
    model: str | None,
    missing: list[str],
    other: list[tuple[str, list[str]]],
) -> LorakitError:
    if other:
        place, differing = other[0]
        parts = " and ".join(differing)
        return LorakitError(
            f"{place} now has another {parts} than this run was tuned on",
            setting="model",
            value=place,
            where=folder.path,
            cure=f"bring the base of then back, name it with {OPTION} PATH, or train again",
        )
    return LorakitError(
        f"its base {model or run.model!r} is not there ({missing[0]})",
        setting="model",
        value=model or run.model,
        where=folder.path,
        cure=f"name the folder that holds it with {OPTION} PATH; its content is compared",
    )


def _hashes(folder: RunFolder) -> dict[str, str] | None:
    """The recorded hash of each saved file; None for a run recorded before files were hashed.

    Raises `LorakitError` for a record of today's that lacks them.
    """
    record = folder.record
    recorded: dict[str, str] | None = record.get("files")
    older = record.get("format", 1) < FORMAT and not record.get("base")
    if recorded is None and not older and record["status"] == Status.DONE:
        raise LorakitError(
            "lacks the hashes of the saved files ('files'), so they cannot be compared",
            where=folder / "record.json",
            cure="put the record of the run back, or train again",
        )
    return recorded


def verify_saved(folder: RunFolder, saved: Path) -> None:
    """`verify_files` of what was trained; refuses files beside it too, since loaders read what bears a known name.

    Hidden files and Markdown are nobody's input and may lie there.
    """
    verify_files(folder, [saved.name])
    recorded = _hashes(folder)
    if recorded is None:
        return
    for path in sorted(saved.rglob("*")):
        ours = path.relative_to(folder.path).as_posix() in recorded
        if ours or (path.is_dir() and not path.is_symlink()):
            continue
        if not path.name.startswith(".") and path.suffix != ".md":
            raise LorakitError(
                "was not saved by the run, and would be read with it",
                where=path,
                cure="move it out of this folder",
            )


def verify_files(folder: RunFolder, names: Sequence[str]) -> None:
    """Raises `LorakitError` when a file below these names is not what the record says, by SHA-256.

    A run recorded before files were hashed passes.
    """
    recorded = _hashes(folder)
    if recorded is None:
        return
    wanted = {
        name: digest
        for name, digest in recorded.items()
        if any(name == top or name.startswith(f"{top}/") for top in names)
    }
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file():
            problem = "is missing"
        elif identity.file_sha256(path) != digest:
            problem = "has changed since the run saved it"
        else:
            continue
        raise LorakitError(
            problem,
            where=path,
            cure="put the file of the run back, or start the run again under another name",
        )
