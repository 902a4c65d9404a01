"""Data of a kind that no schema at hand takes, refused as what it is: pairs, several labels a row, measured numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example

MANY = 20  # numbers that differ, from which they are measured rather than classes


def refuse_by_name(
    rows: Sequence[Example], common: set[str], fits: Mapping[str, ModuleType]
) -> None:
    """Raises `LorakitError` for data of a kind that no schema of these takes, named as what it is."""
    file = rows[0].file
    takes_pairs = any("chosen" in names for m in fits.values() for names in m.REQUIRED)
    if {"chosen", "rejected"} <= common and not takes_pairs:
        raise LorakitError(
            "these look like preference pairs (chosen, rejected), and only one answer to a question can be trained",
            where=file,
            setting="columns",
            cure="train the good answers alone with columns: {prompt: prompt, answer: chosen} and "
            "ignore_columns: [rejected]",
        )
    if "messages" in fits or "prompt_completion" in fits:
        return
    labels = {n for m in fits.values() if hasattr(m, "LABELS") for n in m.REQUIRED[1]}
    for name in sorted(common & {"label", "labels", *labels}):
        values = [v for v in (row.fields.get(name) for row in rows) if v is not None]
        if several := _several(values):
            raise LorakitError(
                f"several labels per row in {name!r} (multi-label classification), e.g. {several!r}: "
                "one class of each row can be trained",
                where=file,
                setting="columns",
                cure="give each row one label, or write the labels as the answer of a question",
            )
        parts = [v for v in values if _fraction(v)]
        some = len(parts) > 1 and len(parts) * 10 >= len(values)
        if some and (isinstance(parts[0], float) or len({*map(str, values)}) > MANY):
            raise LorakitError(
                f"{name!r} holds numbers such as {parts[0]!r} (regression): classes can be trained, numbers cannot",
                where=file,
                setting="columns",
                cure="round or bin the numbers into classes, or write them as the answer of a question",
            )


def _fraction(value: Any) -> bool:
    """Whether this is a number with a part behind the point."""
    if isinstance(value, str) and re.fullmatch(r"-?\d*\.\d+", value.strip()):
        value = float(value)
    return isinstance(value, float) and math.isfinite(value) and not value.is_integer()


def _several(values: Sequence[Any]) -> Any:
    """A list of several labels, or labels joined by a sign that other rows have too ("water,food"); else ""."""
    lists = [v for v in values if isinstance(v, list)]
    long = [v for v in lists if len(v) != 1]
    if long and (len(lists) == len(values) or len(long) * 2 > len(values)):
        return long[0]
    words = {v for v in values if isinstance(v, str)}
    for sign in ",;|":
        counts = Counter(part.strip() for v in words for part in {*v.split(sign)})
        for value in sorted(v for v in words if sign in v):
            if all(counts[part.strip()] > 1 for part in value.split(sign)):
                return value
    return ""
