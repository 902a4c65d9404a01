"""A folder that `save_to_disk` of `datasets` wrote (https://huggingface.co/docs/datasets/process#save). A row:

{"prompt": "When is maize ripe?", "completion": "When a black layer shows at the foot of the kernel."}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import parquet
from lorakit.data.splits import NAMES, official, split_of

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = ()
SPLITS = "dataset_dict.json"
TABLE = ("dataset_info.json", "state.json")


def takes(path: str | Path) -> bool:
    return _has(path, SPLITS) or _has(path, *TABLE)


def read(path: str | Path, *, split: str | None = None) -> Iterator[Example | Rejected]:
    """Rows are numbered by their place in the split. Images and sounds stay as they are stored.

    Of several splits it is "train" unless `split` names another.
    """
    from datasets import load_from_disk

    path = Path(path)
    folder = _folder(path, split)
    name = path.resolve().name if folder == path else f"{path.resolve().name}/{folder.name}"
    try:
        table = load_from_disk(str(folder)).with_format(
            "arrow"
        )  # memory-mapped, and nothing is decoded
        yield from parquet.rows(map(_sound, table.iter(parquet.BATCH)), folder, name)
    except LorakitError:
        raise
    except Exception as error:  # the library checks little: a damaged folder raises almost anything
        raise LorakitError(
            f"{folder}: what `save_to_disk` wrote is incomplete or damaged "
            f"({type(error).__name__}: {error}); write it again"
        ) from None


def splits(path: str | Path, *, split: str | None = None) -> list[str]:
    """The official splits of a dictionary of data sets that stand for train, validation and test."""
    if split is not None or not _has(path, SPLITS):
        return []
    found = [split_of(name) for name in _names(Path(path))]
    return (
        [name for name in ("train", "validation", "test") if name in found]
        if official(found)
        else []
    )


def passed(path: str | Path, *, split: str | None = None) -> list[str]:
    """Splits that are not read, because others stand for train, validation and test."""
    names = _names(Path(path)) if split and _has(path, SPLITS) else []
    kinds = [split_of(name) for name in names]
    return [n for i, n in enumerate(names) if kinds[i] is None or kinds[i] in kinds[:i]]


def classes(path: str | Path, *, split: str | None = None) -> dict[str, list[str]]:
    """The names of the classes of each column that holds some, in their order."""
    features = _json(_folder(Path(path), split) / TABLE[0]).get("features") or {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def files(path: str | Path, *, split: str | None = None) -> list[Path]:
    """The Arrow files that hold the rows, in their order."""
    folder = _folder(Path(path), split)
    state = folder / "state.json"
    try:
        return [folder / file["filename"] for file in _json(state)["_data_files"]]
    except (KeyError, TypeError):
        raise LorakitError(f"{state}: does not list its files; write the folder again") from None


def _sound(table: pa.Table) -> pa.Table:
    """The same table. Arrow trusts the offsets in a file: a damaged one would end the process without a word."""
    table.validate(full=True)
    return table


def _folder(path: Path, split: str | None) -> Path:
    """The folder of one split. Raises `LorakitError` listing the splits when there is no such one."""
    if not takes(path):
        raise LorakitError(
            f"{path}: is no folder that `save_to_disk` wrote (it has neither {SPLITS} nor "
            f"{' and '.join(TABLE)})"
        )
    if not _has(path, SPLITS):
        if split is not None:
            raise LorakitError(f"{path}: has no splits; leave split={split!r} away")
        return path
    names = _names(path)
    name = split or (names[0] if len(names) == 1 else "train")
    if name not in names and split in NAMES:  # `dev` is the validation split
        name = next((n for n in names if split_of(n) == split), name)
    if name not in names:
        hint = (
            did_you_mean(name, names)
            if split
            else "; name one, e.g. format: {saved: {split: test}}"
        )
        raise LorakitError(f"{path}: has no split '{name}'{hint} (splits: {', '.join(names)})")
    return path / name


def _names(path: Path) -> list[str]:
    try:
        return [str(name) for name in _json(path / SPLITS)["splits"]]
    except (KeyError, TypeError):
        raise LorakitError(
            f"{path / SPLITS}: does not list its splits; write the folder again"
        ) from None


def _has(path: str | Path, *names: str) -> bool:
    return all((Path(path) / name).is_file() for name in names)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LorakitError(f"{path}: cannot be read ({error}); write the folder again") from None
