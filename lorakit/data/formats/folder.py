"""A folder of files, each read by its ending, folders inside it too:

reports/2024/march.jsonl
reports/2024/april.csv.gz
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.splits import official, split_of

SUFFIXES = ()
ABOUT = (
    "readme",
    "license",
    "licence",
    "notice",
    "citation",
    "changelog",
    "source",
    "dataset_infos",
    "dataset_info",
)  # files about the data, not of it

Options = Mapping[str, Mapping[str, Any]]


def takes(path: str | Path) -> bool:
    """Any folder that no other format takes."""
    return Path(path).is_dir() and not _whole(Path(path), _formats())


def read(
    path: str | Path, *, options: Options | None = None, split: str | None = None
) -> Iterator[Example | Rejected]:
    """The rows of every file in the order of the names; `options` are those of the formats: {txt: {sample: file}}.

    Hidden files, unknown endings, and a README or a licence are passed over; so are pictures and sounds beside a table,
    whose rows speak of them, and plain text beside pictures and sounds. Of a folder with official splits, `split` names
    the one that is read.
    """
    path, options = Path(path), _checked(options)
    top = path.resolve().name
    for part, name in _of_split(path, split):
        place = Path(top, part.relative_to(path)).parent
        for row in registry.load("formats", name).read(part, **options.get(name, {})):
            file = (
                (place / row.file).as_posix().encode("utf-8", "replace").decode()
            )  # a file's name may be no text
            yield dataclasses.replace(row, file=file)


def splits(
    path: str | Path, *, options: Options | None = None, split: str | None = None
) -> list[str]:
    """The official splits of a folder, [] where its names tell of none or one is chosen already."""
    if split is not None:
        return []
    named = _named(Path(path))
    return list(dict.fromkeys(found for found, _, _ in named if found)) if named else []


def classes(
    path: str | Path, *, options: Options | None = None, split: str | None = None
) -> dict[str, list[str]]:
    """The names of the classes of each column that holds some, in their order, as the first file has them."""
    part, name = _of_split(Path(path), split)[0]
    module = registry.load("formats", name)
    given = _checked(options).get(name, {})
    return module.classes(part, **given) if hasattr(module, "classes") else {}


def passed(
    path: str | Path, *, options: Options | None = None, split: str | None = None
) -> list[str]:
    """Files that are not read, because others stand for the official splits and these for none."""
    parts = _named(Path(path)) if split else []
    return [part.relative_to(path).as_posix() for found, part, _ in parts if found is None]


def _named(path: Path) -> list[tuple[str | None, Path, str]]:
    """(split, file, format) of each file of a folder with official splits, [] of any other folder.

    Where none is named for training and some for a test, the others are for training. Raises `LorakitError` where
    there are no others.
    """
    parts = _parts(path)
    named = [(split_of(part.relative_to(path).as_posix()), part, name) for part, name in parts]
    found = {split for split, _, _ in named}
    if official(found):
        return named
    media = any(hasattr(registry.load("formats", name), "MEDIUM") for _, name in parts)
    if media or not found & {"validation", "test"} or len(found) < 2:
        return []
    if None in found:
        return [(split or "train", part, name) for split, part, name in named]
    raise LorakitError(
        f"the files are named for {' and '.join(sorted(filter(None, found)))}, and none for training",
        where=path,
        setting="data",
        cure="name the files one by one with data, validation_data and test_data",
    )


def files(
    path: str | Path, *, options: Options | None = None, split: str | None = None
) -> list[Path]:
    """Every file that holds rows, in the order in which they are read."""
    options = _checked(options)
    found: list[Path] = []
    for part, name in _of_split(Path(path), split):
        module = registry.load("formats", name)
        found += module.files(part, **options.get(name, {})) if hasattr(module, "files") else [part]
    return found


def _checked(options: Options | None) -> Options:
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not all(
        isinstance(values, Mapping) for values in options.values()
    ):
        raise LorakitError(
            f"options={options!r} of a folder are a format's options by its name, e.g. "
            "{txt: {sample: file}}"
        )
    for name, values in options.items():
        try:
            inspect.signature(registry.load("formats", name).read).bind("", **values)
        except TypeError as error:
            raise LorakitError(f"options of {name}: {error}") from None
    return options


def _of_split(path: Path, split: str | None) -> list[tuple[Path, str]]:
    """What is read of one split, or of the whole folder."""
    parts = _parts(path)
    if split is None:
        return parts
    named = _named(path) or [
        (split_of(part.relative_to(path).as_posix()), part, name) for part, name in parts
    ]
    kept = [(part, name) for found, part, name in named if found == split]
    if not kept:
        known = ", ".join(sorted({found for found, _, _ in named if found})) or "none"
        raise LorakitError(f"{path}: no file of it is of the split {split!r} (splits: {known})")
    return kept


def _parts(path: Path) -> list[tuple[Path, str]]:
    """What is read, and the name of the format that reads it. A folder linked from several places is read once."""
    if not path.is_dir():
        raise LorakitError(f"{path}: is no folder")
    found, passed, seen, places, formats = [], set(), set(), [path], _formats()
    try:
        while places:
            place = places.pop()
            if place != path and place.name.startswith("."):
                continue
            if not place.is_dir():
                name = _by_ending(place, formats)
                passed.add(place.suffix or place.name)
            elif (real := (place.stat().st_dev, place.stat().st_ino)) in seen:
                continue
            else:
                seen.add(real)
                name = _whole(place, formats) if place != path else None
                places += [] if name else sorted(place.iterdir(), reverse=True)
            if name:
                found.append((place, name))
        found = _rows_alone(found, formats)
    except OSError as error:
        raise LorakitError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if not found:
        has = ", ".join(sorted(passed)[:9]) or "none"
        known = ", ".join(sorted(s for module in formats.values() for s in module.SUFFIXES))
        raise LorakitError(
            f"{path}: no file in it can be read (it has {has}; known endings: {known})"
        )
    return found


def _rows_alone(
    found: list[tuple[Path, str]], formats: dict[str, ModuleType]
) -> list[tuple[Path, str]]:
    """Without the files that other files are about."""
    media = [part for part in found if hasattr(formats[part[1]], "MEDIUM")]
    others = [part for part in found if part not in media]
    words_alone = all(name == "txt" for _, name in others)
    return media if media and words_alone else others


def _formats() -> dict[str, ModuleType]:
    return {
        name: module for name, module in registry.modules("formats").items() if name != "folder"
    }


def _by_ending(path: Path, formats: dict[str, ModuleType]) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    if name.split(".")[0] in ABOUT:
        return None
    return next(
        (known for known, module in formats.items() if name.endswith(module.SUFFIXES)), None
    )


def _whole(path: Path, formats: dict[str, ModuleType]) -> str | None:
    """The other format that takes this folder as one thing."""
    return next(
        (
            known
            for known, module in formats.items()
            if hasattr(module, "takes") and module.takes(path)
        ),
        None,
    )
