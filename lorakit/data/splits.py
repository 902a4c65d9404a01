"""Official splits: train, validation and test as files, folders and saved data sets name them."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "holdout", "heldout"),
}
BY_WORD = {word: name for name, words in NAMES.items() for word in words}


def split_of(path: str) -> str | None:
    """The split that a path inside a data set names: `data/train-00000-of-00001.parquet`, `test/a.csv`, `my_dev.json`.

    The outermost folder or file with one such word decides; None for none, or for words that contradict.
    """
    for part in path.replace("\\", "/").split("/"):
        words = re.split(r"[^a-z]+", part.lower().partition(".")[0])
        found = {BY_WORD[word] for word in words if word in BY_WORD}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def official(names: Iterable[str | None]) -> bool:
    """Whether these splits stand for a whole data set: training rows, and others held out."""
    found = set(names)
    return "train" in found and bool(found & {"validation", "test"})
