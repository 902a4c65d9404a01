"""What `keep_rows` asks of a column's value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from lorakit.common.errors import LorakitError

COMPARED = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")


def condition(wanted: Any) -> Callable[[Any], bool]:
    """What a value has to be: one of a list, equal to a value, or compared: ">= 4", "!= spam".

    Raises `LorakitError` for a comparison with what is no number.
    """
    if isinstance(wanted, list):
        each = [condition(one) for one in wanted]
        return lambda value: any(holds(value) for holds in each)
    found = COMPARED.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return lambda value: _same(value, wanted)
    sign, limit = found.groups()
    if sign in ("==", "!="):
        return lambda value: _same(value, limit) == (sign == "==")
    try:
        bound = float(limit)
    except ValueError:
        raise LorakitError(
            f"keep_rows: {wanted!r} compares with what is no number",
            setting="keep_rows",
            value=wanted,
        ) from None

    def holds(value: Any) -> bool:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False
        if math.isnan(number):
            return False
        return {
            ">=": number >= bound,
            "<=": number <= bound,
            ">": number > bound,
            "<": number < bound,
        }[sign]

    return holds


def _same(value: Any, wanted: Any) -> bool:
    """Equal as written: true is "true", 1 is "1" and 1.0."""

    def written(one: Any) -> str:
        if isinstance(one, bool):
            return str(one).lower()
        if isinstance(one, float) and one.is_integer():
            one = int(one)
        return str(one).strip()

    return written(value) == written(wanted)
