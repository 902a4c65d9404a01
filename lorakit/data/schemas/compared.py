"""Two answers side by side and which of them won, as arenas of models store them.

{"prompt": "Is the well safe?", "response_a": "Boil the water first.", "response_b": "Yes.", "winner": "model_a"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data.schemas import SYSTEM, column, preference

GIVES = "pair"
RICHNESS = 78
KINDS = ("response", "answer", "output", "completion", "conversation")
FIRST = (*(f"{kind}_a" for kind in KINDS), "response_0", "response_1")
SECOND = (*(f"{kind}_b" for kind in KINDS), "response_1", "response_2")
WINNER = ("winner", "preference", "better_response_id", "preferred_response", "overall_preference")
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
REQUIRED = (FIRST, SECOND, (*WINNER, ONE_HOT[0]))
OPTIONAL = (*preference.PROMPT, *SYSTEM, *ONE_HOT)
SIDES = {
    **dict.fromkeys(("a", "model_a", "left"), 0),
    **dict.fromkeys(("b", "model_b", "right"), 1),
}


def convert(fields: dict) -> dict:
    """What `preference` makes of the winner and the loser. Raises `BadRow` for a tie."""
    names = _names(fields)
    won = _won(fields, names)
    pair = {"chosen": fields[names[won]], "rejected": fields[names[1 - won]]}
    kept = {n: v for n, v in fields.items() if n in (*preference.PROMPT, *SYSTEM)}
    return preference.convert({**kept, **pair})


def _names(fields: Mapping[str, Any]) -> tuple[str, str]:
    pairs = [(a, b) for a, b in zip(FIRST, SECOND, strict=True) if {a, b} <= fields.keys()]
    if not pairs:
        raise BadRow(f"column {FIRST[0]!r} or {SECOND[0]!r} is missing")
    return pairs[0]


def _won(fields: Mapping[str, Any], names: tuple[str, str]) -> int:
    """0 when the first answer is the better one, 1 when the second is."""
    if ONE_HOT[0] in fields and fields[ONE_HOT[0]] is not None:
        marks = [fields.get(name) in (1, True, "1") for name in ONE_HOT[:2]]
        if sum(marks) != 1:
            raise BadRow("neither answer won: there is nothing to prefer")
        return marks.index(True)
    name = column(fields, (*WINNER, ONE_HOT[0]))
    if fields[name] is None:
        raise BadRow(f"{name!r} is null")
    said = str(fields[name]).strip().casefold()
    ends = [n.rpartition("_")[2] for n in names]
    known = {**SIDES, **{names[i]: i for i in (0, 1)}, **{end: i for i, end in enumerate(ends)}}
    if said not in known:
        if said.startswith(("tie", "both", "none", "equal")):
            raise BadRow("neither answer won: there is nothing to prefer")
        raise BadRow(f"{name!r} is {said[:40]!r}, expected one of {', '.join(known)} or tie")
    return known[said]
