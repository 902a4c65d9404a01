"""Where rows come from: what a name means, which format reads it, and what its content is known by."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.locations import ASSETS, ROOT
from lorakit.data.example import Example, Rejected
from lorakit.data.sniff import by_content

SETS = ("train", "validation", "test")


def example_data(name: str) -> Path:
    """A file of the project's own `data/` folder, in a clone or in an installed package."""
    for folder in (ROOT / "data", ASSETS / "data"):
        if ".." not in Path(name).parts and (folder / name).exists():
            return folder / name
    raise LorakitError(f"{name} is not among lorakit's example data")


def find(path: str) -> Path | None:
    """The file meant: the path as it stands, or lorakit's own example data (`data/relief.jsonl`) from anywhere."""
    if Path(path).exists():
        return Path(path)
    if path.replace("\\", "/").startswith("data/"):
        try:
            return example_data(path[5:])
        except LorakitError:
            pass
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Source:
    """A file, a folder or a hub id, and the format that reads it."""

    name: str  # as the user gave it
    path: str  # as it is read
    format: str
    options: dict[str, Any]
    media_folder: str | None = None  # where pictures and sounds lie that its rows name

    @property
    def module(self) -> ModuleType:
        return registry.load("formats", self.format)

    def read(self) -> Iterator[Example | Rejected]:
        return self.module.read(self.path, **self.options)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the content, or the name that the format knows it by."""
        if hasattr(self.module, "identity"):
            return self.module.identity(self.path, **self.options)
        files = [Path(self.path)]
        if hasattr(self.module, "files"):
            files = [Path(f) for f in self.module.files(self.path, **self.options)]
        hashes = [sha256(f) for f in files]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )


def source(path: str, format: str | Mapping[str, Mapping[str, Any]] = "auto") -> Source:
    """Finds what a name means and which format reads it; `format` is a name, or {name: options}.

    Raises `LorakitError` when there is no such thing, no format for it, or no such option.
    """
    if isinstance(format, Mapping) and len(format) != 1:
        raise LorakitError(
            f"format={dict(format)!r} is not one format with its options, e.g. format: {{csv: {{header: "
            "false}}"
        )
    name: str | None
    ((name, options),) = format.items() if isinstance(format, Mapping) else [(format, {})]
    found, known = find(path), registry.modules("formats")
    if found and not found.is_file() and not found.is_dir():
        raise LorakitError(f"{path}: is a device or a pipe, expected a file or a folder")
    if name == "auto":
        ending = found.name.lower().removesuffix(".gz") if found else ""
        there = str(found or path)
        by_ending = (n for n, m in known.items() if ending.endswith(m.SUFFIXES))
        name = (next(by_ending, None) if found and found.is_file() else None) or next(
            (n for n, m in known.items() if hasattr(m, "takes") and m.takes(there)), None
        )
        if found and found.is_file():
            name = by_content(found, name)
        if name is None:
            if found is None:
                raise _nothing(path)
            endings = ", ".join(sorted(s for m in known.values() for s in m.SUFFIXES))
            raise LorakitError(
                f"{path}: no format reads '{found.suffix}'; known endings: {endings}. Name one with "
                "`format`, e.g. format: csv"
            )
    module = registry.load("formats", name)
    if found is None and not (hasattr(module, "takes") and module.takes(path)):
        raise _nothing(path)
    parameters = inspect.signature(module.read).parameters
    for option in options:
        if option not in [*parameters][1:]:
            raise LorakitError(
                f"format: {name} has no option '{option}'{did_you_mean(option, [*parameters][1:])} "
                f"(options: {', '.join([*parameters][1:]) or 'none'})"
            )
    missing = [n for n, p in [*parameters.items()][1:] if p.default is p.empty and n not in options]
    if missing:
        raise LorakitError(
            f"format: {name} needs the option '{missing[0]}', e.g. format: {{{name}: "
            f"{{{missing[0]}: …}}}}"
        )
    return Source(path, str(found or path), name, dict(options))


def _nothing(path: str) -> LorakitError:
    if Path(path).is_symlink():
        return LorakitError(f"{path}: is a link that leads to no file; name the file itself")
    return LorakitError(f"{path}: no such file (looked from {Path.cwd()})")


def shares(
    data: str | Mapping[str, float] | Sequence[str], replay: Mapping[str, float]
) -> dict[str, float | None]:
    """File -> its share of the target tokens; None: as many as it has."""
    if not isinstance(data, Mapping):
        names = [data] if isinstance(data, str) else list(data)
        if len(names) > 1 and replay:
            raise LorakitError(
                "replay takes a share of the target tokens, and data says no shares",
                setting="replay",
                value=dict(replay),
                cure="write data as {file: weight}",
            )
        data = dict.fromkeys(names, 1.0)
        if len(names) > 1 or not replay:
            return dict.fromkeys(names)
    rest = (1 - sum(replay.values())) / sum(data.values())
    return {**{name: weight * rest for name, weight in data.items()}, **replay}


def of_run(
    data: str | Mapping[str, float] | Sequence[str],
    validation_data: str | None = None,
    test_data: str | None = None,
    format: str | Mapping = "auto",
    replay: Mapping[str, float] | None = None,
    media_folder: str | None = None,
    ask_hub: bool = True,
) -> dict[str, Source]:
    """The files of a run by the set they are for; `format` also holds for others of the same ending.

    A folder, a saved dictionary of data sets or a data set of the hub that names its own splits gives them; that of
    the hub only where `ask_hub`. Further files of a mixture are `train 2`, `train 3`, …
    """
    first, *others = shares(data, replay or {})
    found = {"train": source(first, format)}
    for number, file in enumerate(others, 2):
        same = Path(file).suffix == Path(first).suffix
        found[f"train {number}"] = source(file, format if same else "auto")
    for name, path in (("validation", validation_data), ("test", test_data)):
        if path:
            found[name] = source(
                path, format if Path(path).suffix == Path(first).suffix else "auto"
            )
    if (
        [*found] == ["train"]
        and hasattr(found["train"].module, "splits")
        and (ask_hub or Path(first).exists())
    ):
        whole = found["train"]
        for name in whole.module.splits(whole.path, **whole.options):
            found[name] = replace(whole, options={**whole.options, "split": name})
    return {name: replace(each, media_folder=media_folder) for name, each in found.items()}


def identity(sources: Mapping[str, Source]) -> str:
    """What the content of all of them is known by."""
    order = {name: place for place, name in enumerate(SETS)}
    parts = [sources[n].identity for n in sorted(sources, key=lambda n: order.get(n, len(SETS)))]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def places_of(it: Source, row: Example) -> list[Path]:
    """The folders that a path in a row may start from: that of its file, that of the data, `media_folder`."""
    top = _top(it)
    named = [Path(it.media_folder)] if it.media_folder else []
    return list(dict.fromkeys([(top.absolute().parent / row.file).parent, top, *named]))


def media_roots(it: Source) -> list[Path]:
    """The folders that the pictures and sounds of its rows must lie in, links followed.

    A table that somebody else has made could otherwise name any file of this machine.
    """
    named = [Path(it.media_folder).resolve()] if it.media_folder else []
    if it.format == "hub":
        from huggingface_hub import constants

        return [Path(constants.HF_HOME).resolve(), *named]
    top = _top(it).resolve()
    if (
        "snapshots" in top.parts
    ):  # in the hub's cache files are links into a folder beside the snapshots
        named.append(Path(*top.parts[: top.parts.index("snapshots")]) / "blobs")
    return [top, *named]


def _top(it: Source) -> Path:
    return Path(it.path) if Path(it.path).is_dir() else Path(it.path).parent


def media_paths(sets: Mapping[str, Sequence[Example]]) -> list[str]:
    """The files of pictures and sounds that rows name."""
    if not len(sets["train"]) or "media" not in sets["train"][0].fields:
        return []
    return [
        m["path"]
        for rows in sets.values()
        for row in rows
        for m in row.fields["media"]
        if "path" in m
    ]


def with_media(content: str, examples: Sequence[Example]) -> str:
    """What the content is known by, the pictures and sounds that a table names included."""
    if "media" not in examples[0].fields:
        return content
    hashes = (m["sha256"] for row in examples for m in row.fields["media"])
    return hashlib.sha256("".join([content, *hashes]).encode()).hexdigest()
