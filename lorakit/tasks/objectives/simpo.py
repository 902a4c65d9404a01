"""SimPO: log-probabilities per token as rewards, no base, and a margin between them (arXiv 2405.14734, eq. 6)."""

from __future__ import annotations

from typing import Any

from lorakit.tasks import pairs
from lorakit.tasks.objectives import dpo

HEAD = dpo.HEAD
NEEDS = dpo.NEEDS
UNIT = dpo.UNIT
COLUMNS = pairs.COLUMNS
MEASURES = pairs.MEASURES
OPTIONS = {"beta": 2.0, "gamma": 1.0}  # scale of the rewards; margin that the chosen one shall have
LEARNING_RATE = 1e-6  # arXiv 2405.14734, appendix B
documents = pairs.documents


def rewards(logps: Any, values: dict[str, Any], *, beta: float, gamma: float) -> Any:
    """(D,) beta log p per token of each answer."""
    return beta * logps / values["length"]


def pair_loss(xp: Any, chosen: Any, rejected: Any, *, beta: float, gamma: float) -> Any:
    """-log sigmoid(chosen - rejected - gamma)"""
    margin = chosen - rejected - gamma
    return xp.logaddexp(-margin, 0 * margin)


losses, statistics = pairs.of(rewards, pair_loss)
