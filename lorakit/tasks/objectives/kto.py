"""KTO: single answers, each marked desirable or undesirable, valued from a reference point (arXiv 2402.01306, eq. 7).

With r = log(p / p_base) of an answer and z = max(0, mean of r over answers to other prompts), a desirable answer costs
`desirable_weight` (1 - sigmoid(beta (r - z))), an undesirable one `undesirable_weight` (1 - sigmoid(beta (z - r))). No
gradient flows through z. As in TRL, but z is the mean over the whole update, not over a micro-batch. TRL mismatches
answers within a batch, this file within a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lorakit.tasks import pairs
from lorakit.tasks.protocol import Document, Row

HEAD = "tokens"
NEEDS = "document_logps"
UNIT = "answers"
COLUMNS = ("ids", "targets", "desirable", "other_ids", "other_targets")
MEASURES = pairs.MEASURES
REFERENCE = True
MEAN_RATIO = True
OPTIONS = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
LEARNING_RATE = 1e-6  # TRL's KTOConfig: beta = 0.1 tolerates little more


def documents(row: Row) -> list[Document]:
    """The answer behind its prompt; `mismatched`: another row's answer behind it."""
    answer, other = row.get("base_logps", (0.0, 0.0))
    values = {
        "reference": answer,
        "desirable": float(row["desirable"]),
        "length": float(np.sum(row["targets"][1:])),
        "mean_ratio": 0.0,
    }
    beside = Document(row["other_ids"], row["other_targets"], values={"reference": other}, unit=1)
    return [Document(row["ids"], row["targets"], values=values, unit=1, mismatched=beside)]


def losses(xp: Any, logps: Any, values: Mapping[str, Any], options: Mapping[str, float]) -> Any:
    """(R,) of R answers; 1 - sigmoid(x) = exp(-log(1 + exp(x)))"""
    good = values["desirable"]
    weight = options["desirable_weight"] * good + options["undesirable_weight"] * (1 - good)
    gain = options["beta"] * (logps - values["reference"] - values["mean_ratio"])
    gain = (2 * good - 1) * gain
    return weight * xp.exp(-xp.logaddexp(gain, 0 * gain))


def statistics(
    scores: np.ndarray, values: Mapping[str, Any], options: Mapping[str, float]
) -> np.ndarray:
    """An answer is ranked right when its reward has the sign of its mark; a reward of 0 is half right."""
    reward = options["beta"] * (-scores[:, 0] - values["reference"])
    good = values["desirable"] > 0
    right = np.where(reward == 0, 0.5, (reward > 0) == good)
    loss = losses(np, -scores[:, 0], values, options)
    sides = [np.where(good, reward, np.nan), np.where(good, np.nan, reward)]
    columns = [loss, np.ones_like(loss), right, *sides, *(scores[:, :2].T * good)]
    return np.stack(columns, axis=1)
