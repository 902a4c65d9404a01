"""ORPO: the chosen answer is learnt and its odds against the rejected one raised, without a base (arXiv 2403.07691).

The answer's loss is the mean over its tokens (eq. 2), then over pairs: pairs weigh the same in every micro-batch.
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
OPTIONS = {"beta": 0.1}  # weight of the odds ratio
LEARNING_RATE = 8e-6  # arXiv 2403.07691, appendix C
CERTAIN = -1e-6  # a mean log-probability above it would have infinite odds
documents = pairs.documents


def rewards(logps: Any, values: dict[str, Any], *, beta: float) -> Any:
    """(D,) log p per token of each answer."""
    return logps / values["length"]


def pair_loss(xp: Any, chosen: Any, rejected: Any, *, beta: float) -> Any:
    """-chosen - beta log sigmoid(log odds(chosen) - log odds(rejected)), odds(p) = p / (1 - p) (eq. 6 and 7)"""
    margin = _log_odds(xp, chosen) - _log_odds(xp, rejected)
    return -chosen + beta * xp.logaddexp(-margin, 0 * margin)


def _log_odds(xp: Any, logp: Any) -> Any:
    logp = xp.where(logp < CERTAIN, logp, 0 * logp + CERTAIN)
    return logp - xp.log(-xp.expm1(logp))


losses, statistics = pairs.of(rewards, pair_loss)
