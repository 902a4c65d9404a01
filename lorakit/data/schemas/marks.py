"""Marks that say how much a turn or a row counts: 0 masks it, another weight scales its loss.

Spellings: OpenAI's `weight`, Axolotl's `train` and `training`, ms-swift's `loss`, verl's `loss_mask`, `loss_weight`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from lorakit.common.errors import BadRow

NAMES = ("weight", "train", "training", "loss", "loss_mask", "loss_weight")
ANY = frozenset(NAMES)
# Marks under which a user's turn is trained as well; a plain weight of 1 is every turn's default.
TRAINS_ANY = ("train", "training", "loss", "loss_mask")
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
DETAIL = ("train_detail", "training_detail")  # Axolotl's marks of characters inside a turn


def weight_of(holder: Mapping[str, Any], names: tuple[str, ...] = NAMES) -> float | None:
    """The weight that these marks give, None without one. Raises `BadRow` for what is no weight, or contradicts."""
    if ANY.isdisjoint(holder):
        return None
    given = {name: _number(name, holder[name]) for name in names if holder.get(name) is not None}
    if len(set(given.values())) > 1:
        raise BadRow(
            f"marks that contradict: {', '.join(f'{n!r} is {w:g}' for n, w in given.items())}"
        )
    return next(iter(given.values()), None)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        text = value.strip().lower()
        with contextlib.suppress(ValueError):
            value = WORDS[text] if text in WORDS else float(text)
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value) or value < 0:
        raise BadRow(f"{name!r} is {str(value)[:40]!r}, expected true, false or a weight from 0")
    if name in TRAINS_ANY and value not in (0, 1):
        raise BadRow(
            f"{name!r} is {value!r}, expected true or false; a weight belongs into 'weight'"
        )
    return float(value)


def marked(fields: Mapping[str, Any], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with the marks of their row applied. Raises `BadRow` when no answer is left to train.

    A row's mark is one weight for all of its answers, or a list with one for each turn.
    """
    if ANY.isdisjoint(fields) and not any("weight" in turn for turn in turns):
        return turns
    per_turn = next((n for n in NAMES if isinstance(fields.get(n), list)), None)
    weights = [1.0] * len(turns)
    if per_turn is not None:
        given = fields[per_turn]
        if len(given) != len(turns):
            raise BadRow(f"{per_turn!r} marks {len(given)} turns, and the row has {len(turns)}")
        weights = [_number(per_turn, mark) for mark in given]
        for number, (weight, turn) in enumerate(zip(weights, turns, strict=True), 1):
            refuse_user(turn["role"], number, per_turn if weight else "")
    whole = weight_of({n: fields.get(n) for n in NAMES if n != per_turn})
    for turn, weight in zip(turns, weights, strict=True):
        if turn["role"] == "assistant":
            total = turn.pop("weight", 1.0) * weight * (1.0 if whole is None else whole)
            if total != 1:
                turn["weight"] = total
    if all(turn.get("weight") == 0 for turn in turns if turn["role"] == "assistant"):
        raise BadRow("every answer is marked not to be trained")
    return turns


def refuse_user(role: str, number: int, mark: str) -> None:
    """Raises `BadRow` for a turn that is to be trained and is not the assistant's."""
    if mark in TRAINS_ANY and role != "assistant":
        raise BadRow(
            f"turn {number} ({role}) is marked {mark!r}; only the assistant's turns are trained"
        )
