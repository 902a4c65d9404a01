"""Which base and which files these are: identity by content, wherever they lie.

A base is its weights and its configuration. Its tokenizer and template are saved with each run, and the run's own are
used afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.models import base_model
from lorakit.models.base_model import file_sha256

# What a library writes into config.json about itself, not about the model.
VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


@dataclass(frozen=True)
class Base:
    """The content of a base: SHA-256 of its weights and of its configuration; None where the files are not at hand."""

    weights: str | None
    config: str | None

    def differences(self, recorded: Base) -> list[str]:
        """Names of the parts that differ from a recorded base; unknown parts differ from nothing."""
        pairs = (
            ("weights", self.weights, recorded.weights),
            ("configuration", self.config, recorded.config),
        )
        return [name for name, mine, theirs in pairs if mine and theirs and mine != theirs]


def base(model: str) -> Base:
    """The content of a base named as in `Run.model`. Raises `LorakitError` for what can be no base."""
    folder = local_folder(model)
    if folder is None:
        return Base(None, None)
    return Base(base_model.weights_of(folder), _config(folder / "config.json"))


def local_folder(model: str) -> Path | None:
    """Where the files of a base lie on this machine, without asking the hub; None where they do not."""
    where = base_model.path(model)
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "config.json"]
        return Path(snapshot_download(where, local_files_only=True, allow_patterns=patterns))
    except OSError:
        return None


def _config(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    kept = {name: value for name, value in content.items() if name not in VOLATILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def note(model: str, run_folder: Path, reader: str) -> dict[str, Any]:
    """What the record of a run keeps of its base: where it lay, its content, the hash of what reads for it."""
    found, where = base(model), base_model.path(model)
    if (Path(where) / base_model.MADE_OF).is_file():  # made of a run, and made again from it
        where = model
    local = Path(where).is_dir()
    return {
        "path": str(Path(where).resolve()) if local else where,
        "relative": os.path.relpath(where, run_folder) if local else None,
        "weights": found.weights,
        "config": found.config,
        "reader": reader,
    }


def files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """path relative to `folder` -> SHA-256, of every file below these of its sub-folders and files."""
    found = {}
    for name in names:
        top = folder / name
        for path in sorted(top.rglob("*") if top.is_dir() else [top]):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = file_sha256(path)
    return found
