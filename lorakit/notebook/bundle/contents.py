"""What goes into a bundle: the base, the data, and the pictures and sounds that their rows name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.common.locations import PACKAGE
from lorakit.data.example import Example
from lorakit.data.loading import HEAD
from lorakit.data.sources import Source, places_of, source
from lorakit.models import base_model

DATA = ("data", "validation_data", "test_data")  # settings that name files; `model` names the base


def gathered(
    settings: Mapping[str, Any],
) -> tuple[dict[str, Path], dict[str, Source], dict[str, Any]]:
    """(place in the bundle -> file, place -> data set of the hub, the settings that change with it).

    Raises `LorakitError` naming what cannot be found or would not be found on another machine.
    """
    files: dict[str, Path] = {}
    sets: dict[str, Source] = {}
    placed: dict[str, Any] = {}
    if settings.get("model") and (folder := base_folder(settings["model"])):
        placed["model"] = f"model/{last_name(settings['model'])}"
        files |= tree(folder, placed["model"])
    for key in DATA:
        if not settings.get(key):
            continue
        it = source(settings[key], settings.get("format") or "auto")
        placed[key] = (
            f"{key}/{it.name.replace('/', '--') if it.format == 'hub' else last_name(it.path)}"
        )
        if it.format == "hub":
            sets[placed[key]] = it
        else:
            files |= files_of(it, placed[key])
        if it.format == "hub" and isinstance(settings.get("format"), Mapping):
            placed["format"] = "auto"
        if "target" in it.options:  # parallel text
            placed["format"] = {
                it.format: {**it.options, "target": Path(it.options["target"]).name}
            }
    return files, sets, placed


def base_folder(model: str) -> Path | None:
    """Where a base's files are on this machine; None for one inside lorakit's own wheel."""
    where = base_model.path(model)
    folder = Path(where)
    if folder.resolve().is_relative_to(PACKAGE):
        return None
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(where, local_files_only=True))
        except OSError:
            raise LorakitError(
                f"{model} is not on this machine; first: hf download {where}"
            ) from None
    index = next(folder.glob("*.safetensors.index.json"), None)
    try:
        shards = (
            {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()} if index else ()
        )
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise LorakitError(f"{index}: cannot be read ({error}); download the base again") from None
    lost = sorted(shard for shard in shards if not (folder / shard).is_file())
    if lost or not any(any(folder.glob(kind)) for kind in ("*.safetensors", "*.bin")):
        raise LorakitError(
            f"{model}: {folder} lacks {lost[0] if lost else 'its weights'}; the download is not whole: "
            f"hf download {where}"
        )
    base_model.reader(str(folder))  # its tokenizer, or what else it reads with, is there as well
    return folder


def tree(folder: Path, place: str) -> dict[str, Path]:
    """Every file of a folder but hidden ones, at its place in the bundle; links are followed."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        f"{place}/{inside.as_posix()}": path
        for inside, path in found.items()
        if not any(part.startswith(".") for part in inside.parts)
    }


def files_of(it: Source, place: str) -> dict[str, Path]:
    """The files of a data set, and the pictures and sounds that its rows speak of."""
    path = Path(it.path)
    if path.is_dir():
        files = tree(path, place)
        more = it.module.files(path, **it.options) if hasattr(it.module, "files") else []
        files |= {f"{place}/{file.relative_to(path).as_posix()}": file for file in more}
        return files | {f"{place}/{inside}": file for inside, file in spoken_of(it)}
    parts = it.module.files(path, **it.options) if hasattr(it.module, "files") else [path]
    home = place.rpartition("/")[0]
    found = {f"{home}/{file.name}": file for file in parts}
    if len(found) < len(parts):
        raise LorakitError(
            f"{', '.join(map(str, parts))}: have one name; a bundle keeps them in one folder, so rename "
            "one"
        )
    return found | {f"{home}/{inside}": file for inside, file in spoken_of(it)}


def spoken_of(it: Source) -> Iterator[tuple[str, Path]]:
    """(path from the data's own folder, file) of each picture and sound that rows name by a path.

    Raises `LorakitError` for a path that no other machine would have.
    """
    media = tuple(
        s for m in registry.modules("formats").values() if hasattr(m, "MEDIUM") for s in m.SUFFIXES
    )
    top = (Path(it.path) if Path(it.path).is_dir() else Path(it.path).parent).absolute()
    rows = (
        row
        for row in it.read()
        if isinstance(row, Example) and not row.file.lower().endswith(media)
    )
    named = lambda row: [v for v in strings(row.fields) if v.lower().endswith(media)]
    head = list(islice(rows, HEAD))
    if not any(map(named, head)):  # as for the schema, the first rows tell
        return
    for row in (*head, *rows):
        for value in named(row):
            places = [place for place in (*places_of(it, row), Path()) if _is_file(place / value)]
            if not places:
                continue
            start = places[0].absolute() if places[0].absolute().is_relative_to(top) else top
            inside = Path(os.path.normpath(start.relative_to(top) / value))
            if inside.is_absolute() or inside.parts[0] == "..":
                raise LorakitError(
                    f"{row.where}: {value} is outside {top}, where another machine would not find it; "
                    "put it into that folder and name it from there"
                )
            yield inside.as_posix(), places[0] / value


def strings(value: Any) -> Iterator[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL in it
        return False


def last_name(path: str) -> str:
    """The name of a file or folder, also where it is named as `.`"""
    return Path(os.path.abspath(path)).name
