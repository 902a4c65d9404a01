"""IPO: as DPO, but towards a fixed margin, so that certain preferences are not overfitted (arXiv 2310.12036, eq. 17).

Log-ratios are means over an answer's tokens, as in TRL, which confirmed this with the authors.
"""

from __future__ import annotations

from typing import Any

from lorakit.tasks import pairs
from lorakit.tasks.objectives import dpo

HEAD = dpo.HEAD
NEEDS = dpo.NEEDS
UNIT = dpo.UNIT
COLUMNS = pairs.COLUMNS
MEASURES = pairs.MEASURES
REFERENCE = True
OPTIONS = {"beta": 0.1}  # the margin is 1 / (2 beta)
LEARNING_RATE = dpo.LEARNING_RATE
documents = pairs.documents


def rewards(logps: Any, values: dict[str, Any], *, beta: float) -> Any:
    """(D,) log(p / p_base) per token of each answer."""
    return (logps - values["reference"]) / values["length"]


def pair_loss(xp: Any, chosen: Any, rejected: Any, *, beta: float) -> Any:
    """(chosen - rejected - 1 / (2 beta))²"""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


losses, statistics = pairs.of(rewards, pair_loss)
