"""What the columns of a row mean, one module each.

Contract: `GIVES`, the field a task asks for (`messages` or `text`); `REQUIRED`, a tuple of columns, each a tuple of
the names it may have; `convert(fields)` returns `{GIVES: …}` or raises `BadRow` saying what is wrong. The schema whose
columns are all there is taken; of several, the one that explains the most columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.errors import BadRow


def text_of(fields: Mapping[str, Any], names: tuple[str, ...], *, empty: bool = False) -> str:
    """The text of the first of these columns that is there. Raises `BadRow` when null, empty or not text."""
    name = next(n for n in names if n in fields) if any(n in fields for n in names) else None
    if name is None:
        raise BadRow(f"column '{names[0]}' is missing")
    value = fields[name]
    if value is None and empty:
        return ""
    if value is None:
        raise BadRow(f"'{name}' is null")
    if not isinstance(value, str):
        raise BadRow(f"'{name}' is {type(value).__name__}, expected text")
    if not empty and not value.strip():
        raise BadRow(f"'{name}' is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"'{name}' holds half a character (a lone surrogate)") from None
    return value


def turns(prompt: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """One question and its answer as `messages`."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
