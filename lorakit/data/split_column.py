"""A column that names the set of each row, as data sets publish all of their splits in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Chosen, Example
from lorakit.data.meanings import canonical
from lorakit.data.report import DataReport
from lorakit.data.splits import BY_WORD, NAMES, official

COLUMN = re.compile(r"((data)?_?(set)?_?)?splits?|(data_?)?set|subset|partition|phase|fold")
MEANS = "names the set"  # what the column is used for, in a report


def named(column: str, values: Sequence[Any]) -> bool:
    """Whether this column says which rows are for training, validation or test. What else it says is refused later."""
    words = [value.strip().lower() for value in values if isinstance(value, str) and value.strip()]
    sets = {BY_WORD.get(word) for word in words}
    return bool(COLUMN.fullmatch(canonical(column)) and sets) and (
        official(sets) or None not in sets
    )


def parts(
    examples: Sequence[Example], report: DataReport, others: Sequence[str]
) -> Mapping[str, Sequence[Example]]:
    """The rows of each set by the column that names it; `train` alone where there is none.

    A set of `others` has a file of its own: rows that the column counts to it are left out, and that is noted.
    Raises `LorakitError` for a row of which the column names no set.
    """
    column = next((c for c, meaning in report.used.items() if meaning == MEANS), None)
    if column is None:
        return {"train": examples}
    found: dict[str, list[int]] = {}
    for index, row in enumerate(examples):
        word = row.fields["columns"].get(column, "train")  # another file of a mixture lacks it
        name = BY_WORD.get(word.strip().lower()) if isinstance(word, str) else None
        if name is None:
            raise LorakitError(
                f"{column!r} names the set of every row, and here it is {word!r}",
                setting="ignore_columns",
                value=word,
                where=row.where,
                cure=f"write one of {', '.join(NAMES)}, or do not use the column with ignore_columns: [{column}]",
            )
        found.setdefault(name, []).append(index)
    if not official(found):
        return {"train": examples}
    sets = {name: Chosen(examples, found[name]) for name in NAMES if name in found}
    for name in set(sets) & set(others):
        report.notes.append(
            f"{len(sets.pop(name)):,} rows that {column!r} counts to {name} are left out: {name} has a file of its own"
        )
    if len(sets) > 1:
        report.notes.append(
            f"the data's own splits are used, as {column!r} names them: {', '.join(sets)}"
        )
    return sets
