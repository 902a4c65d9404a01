"""A data set of the hub, named `owner/name` and read by `datasets` (https://huggingface.co/docs/datasets/loading).

A row of one, as its page shows it:

{"messages": [{"role": "user", "content": "Is the well safe?"}, {"role": "assistant", "content": "Boil it first."}]}
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.hub import find_token, page, reason, refused
from lorakit.data.example import Example
from lorakit.data.splits import NAMES, official, split_of

SUFFIXES = ()
ID = re.compile(r"\w[\w.\-]*/\w[\w.\-]*", re.ASCII)
OFFLINE = "Without internet name a local file or folder, or attach it"


def takes(path: str | Path) -> bool:
    """Whether this can only be a hub id: nothing of that name is here, and it has no ending of a file."""
    if not ID.fullmatch(str(path)) or Path(path).exists():
        return False
    endings = tuple(s for module in registry.modules("formats").values() for s in module.SUFFIXES)
    return not str(path).lower().removesuffix(".gz").endswith(endings)


def read(
    path: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> Iterator[Example]:
    """At most `rows` rows of a split ("train"), numbered from 1. Downloaded and mapped into memory, or as they come.

    Images and sounds stay as they are stored ({bytes, path}); a class is its name, and None where it has none.
    """
    path, row = str(path), 0
    builder, split = _opened(path, split, subset, revision, rows)
    try:
        for row, fields in enumerate(islice(_dataset(builder, split, streaming), rows), 1):
            yield Example(fields, f"{path}/{split}", row)
    except Exception as error:  # of the network, the disk, Arrow, any of the readers in datasets
        raise _broken(path, split, row, builder, streaming, error) from None


def splits(
    path: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> list[str]:
    """The official splits that stand for train, validation and test; [] when `split` or `rows` chooses."""
    if split is not None or rows is not None:
        return []
    _check(str(path), rows=rows, subset=subset, revision=revision)
    names = _splits(_builder(str(path), subset, revision))
    found = {split_of(name) for name in names}
    return [name for name in NAMES if name in found] if official(found) else []


def classes(
    path: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> dict[str, list[str]]:
    """The names of the classes of each column that holds some, in their order."""
    from datasets import ClassLabel

    features = _builder(str(path), subset, revision).info.features or {}
    return {name: f.names for name, f in features.items() if isinstance(f, ClassLabel)}


def passed(
    path: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> list[str]:
    """Splits that are not read, because others stand for train, validation and test."""
    if not splits(path, subset=subset, revision=revision, rows=rows):
        return []
    names = _splits(_builder(str(path), subset, revision))
    kinds = [split_of(name) for name in names]
    return [n for i, n in enumerate(names) if kinds[i] is None or kinds[i] in kinds[:i]]


def save(
    path: str | Path,
    folder: Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> None:
    """The same rows as a folder that `formats.saved` reads without the hub, all splits of it where they are official;
    `streaming` is about reading alone."""
    path = str(path)
    whole = bool(splits(path, split=split, subset=subset, revision=revision, rows=rows))
    builder, split = _opened(path, split, subset, revision, rows)
    try:
        builder.download_and_prepare()
        if whole:
            return builder.as_dataset().save_to_disk(str(folder))
        table = builder.as_dataset(split)
        (table.select(range(min(rows, len(table)))) if rows else table).save_to_disk(str(folder))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise _broken(path, split, 0, builder, False, error) from None
    except Exception as error:  # see `read`
        raise _broken(path, split, 0, builder, False, error) from None


def identity(
    path: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> str:
    """The commit, and which part of it."""
    path = str(path)
    _check(path, rows=rows, split=split, subset=subset, revision=revision)
    from datasets import config

    commit = (
        _builder(path, subset, revision).hash if config.HF_HUB_OFFLINE else _commit(path, revision)
    )
    part = "/".join(name for name in (f"{path}@{commit}", subset, split or "train") if name)
    return f"{part}[:{rows}]" if rows else part


def _opened(
    path: str, split: str | None, subset: str | None, revision: str | None, rows: int | None
) -> tuple[Any, str]:
    """(the reader of `datasets` for a subset, the split's own name in it)."""
    _check(path, rows=rows, split=split, subset=subset, revision=revision)
    builder = _builder(path, subset, revision)
    names, split = _splits(builder), split or "train"
    if split not in names and split in NAMES:  # `dev` is the validation split
        split = next((name for name in names if split_of(name) == split), split)
    if split not in names:
        raise LorakitError(
            f"{path} has no split '{split}'{did_you_mean(split, names)} (splits: {', '.join(names)}). "
            "Name one, e.g. format: {hub: {split: test}}"
        )
    return builder, split


def _splits(builder: Any) -> list[str]:
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def _check(path: str, rows: Any, **names: Any) -> None:
    if not ID.fullmatch(path):
        raise LorakitError(
            f"{path}: is no name at the hub, such as owner/name; leave `format` away to read a file"
        )
    if rows is not None and (type(rows) is not int or rows < 1):
        raise LorakitError(f"format: hub: rows={rows!r}, expected a whole number from 1")
    for option, name in names.items():
        if not isinstance(name, str | None):
            raise LorakitError(f"format: hub: {option}={name!r} is no name; put it in quotes")


def _commit(path: str, revision: str | None) -> str:
    """The commit that a revision names now. Raises `LorakitError` when the hub does not give it out."""
    from huggingface_hub import HfApi

    find_token()
    try:
        info = HfApi().dataset_info(path, revision=revision, timeout=10, expand=["sha", "gated"])
        if info.gated:
            HfApi().auth_check(path, repo_type="dataset")
    except (
        Exception
    ) as error:  # connection errors have no common type over the versions of huggingface_hub
        raise refused(path, "dataset", error, revision) from None
    return info.sha


def _builder(path: str, subset: str | None, revision: str | None) -> Any:
    """The reader of `datasets` for one subset; its `hash` is the commit that it reads."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    commit = _kept_commit(path, revision) if offline else _commit(path, revision)
    try:
        builder = datasets.load_dataset_builder(path, subset, revision=revision)
    except Exception as error:  # of the network, YAML, the readers in datasets
        if offline:
            raise LorakitError(
                f"{path}: HF_HUB_OFFLINE is set, and this is not in the local cache ({reason(error)}). "
                f"{OFFLINE}"
            ) from None
        raise _unusable(path, subset, revision, error) from None
    # Where datasets fails and an older copy is in the cache, it takes that without being asked.
    if commit and not builder.hash.startswith(commit):
        raise LorakitError(
            f"{path}: {revision or 'the newest commit'} could not be loaded; the last one in the local "
            f"cache is {builder.hash}. Start again with internet, or take that one: format: {{hub: "
            f"{{revision: {builder.hash}}}}}"
        )
    return builder


def _kept_commit(path: str, revision: str | None) -> str | None:
    """The commit that a revision named when it was last looked up; any will do when none is named."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    reference = Path(
        HF_HUB_CACHE, repo_folder_name(repo_id=path, repo_type="dataset"), "refs", revision or ""
    )
    return reference.read_text() if reference.is_file() else revision


def _unusable(
    path: str, subset: str | None, revision: str | None, error: Exception
) -> LorakitError:
    import datasets

    if "scripts are no longer supported" in str(error):
        return LorakitError(
            f"{path} is a program ({path.rpartition('/')[2]}.py), which datasets no longer runs. The "
            "hub may keep its rows as Parquet: format: {hub: {revision: refs/convert/parquet}}"
        )
    subsets = []
    if isinstance(
        error, ValueError
    ):  # a subset that is not there, or none named of several, among other things
        with contextlib.suppress(Exception):
            subsets = datasets.get_dataset_config_names(path, revision=revision)
    if subset in subsets or len(subsets) < (1 if subset else 2):
        return LorakitError(f"{path} could not be loaded: {reason(error)}")
    what = (
        f"has no subset '{subset}'{did_you_mean(subset, subsets)}"
        if subset
        else "has several subsets"
    )
    return LorakitError(
        f"{path} {what} (subsets: {', '.join(subsets)}). Name one, e.g. format: {{hub: {{subset: "
        f"{subsets[0]}}}}}"
    )


def _dataset(builder: Any, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
    """The rows of one split, nothing decoded."""
    from datasets import ClassLabel

    if streaming:
        dataset = builder.as_streaming_dataset(split)
    else:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split).to_iterable_dataset()
    if (
        dataset.features
    ):  # unknown where only the rows tell them (JSON, CSV), and those hold nothing to decode
        dataset = dataset.decode(False)
    classes = {k: f.names for k, f in (dataset.features or {}).items() if isinstance(f, ClassLabel)}
    for fields in dataset:
        # -1 stands for a class that is kept back, as in many test splits
        yield fields | {
            k: None if fields[k] in (None, -1) else names[fields[k]] for k, names in classes.items()
        }


def _broken(
    path: str, split: str, row: int, builder: Any, streaming: bool, error: Exception
) -> LorakitError:
    from datasets.exceptions import DatasetGenerationError

    why = reason(error.__cause__ or error if type(error) is DatasetGenerationError else error)
    look = f"look at the files: {page(path, 'dataset')}/tree/{builder.hash}"
    if streaming:
        return LorakitError(
            f"{path}/{split}: the stream broke after {row} rows ({why}). Start again; if it breaks "
            f"there again, {look}"
        )
    if missing := _missing(path, builder):
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        return LorakitError(
            f"{path}: the download was cut at {missing[0]}{others} ({why}). Start again: the files "
            "that are whole are kept"
        )
    return LorakitError(f"{path}: its files cannot be read ({why}); {look}")


def _missing(path: str, builder: Any) -> list[str]:
    """The files of the subset that are not in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    start = f"hf://datasets/{path}@{builder.hash}/"
    names = [
        f.removeprefix(start)
        for files in (builder.config.data_files or {}).values()
        for f in files
        if f.startswith(start)
    ]
    return [
        name
        for name in names
        if not isinstance(
            try_to_load_from_cache(path, name, repo_type="dataset", revision=builder.hash), str
        )
    ]
