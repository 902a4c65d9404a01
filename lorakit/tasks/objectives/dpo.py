"""DPO: the chosen answer gains on the rejected one, measured from the base (arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

from typing import Any

from lorakit.tasks import pairs

HEAD = "tokens"
NEEDS = "document_logps"
UNIT = "pairs"
COLUMNS = pairs.COLUMNS
MEASURES = pairs.MEASURES
REFERENCE = True
OPTIONS = {"beta": 0.1}  # how close the model stays to the base: higher is closer
LEARNING_RATE = 5e-6  # of Zephyr's DPO with QLoRA (github.com/huggingface/alignment-handbook)
documents = pairs.documents


def rewards(logps: Any, values: dict[str, Any], *, beta: float) -> Any:
    """(D,) beta log(p / p_base) of each answer."""
    return beta * (logps - values["reference"])


def pair_loss(xp: Any, chosen: Any, rejected: Any, *, beta: float) -> Any:
    """-log sigmoid(chosen - rejected), ln 2 where both are as likely as under the base."""
    margin = chosen - rejected
    return xp.logaddexp(-margin, 0 * margin)


losses, statistics = pairs.of(rewards, pair_loss)
