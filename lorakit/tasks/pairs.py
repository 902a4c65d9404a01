"""Pairs of answers to one prompt, of which people prefer the first: what preference objectives have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lorakit.tasks.protocol import Document, Objective, Row

COLUMNS = ("ids", "targets", "rejected_ids", "rejected_targets")
MEASURES = ("pairs",)


def documents(row: Row) -> list[Document]:
    """The chosen answer and the rejected one, each behind the prompt. `reference`: the base's log-probabilities."""
    reference = row.get("base_logps", (0.0, 0.0))
    sides = ((row["ids"], row["targets"]), (row["rejected_ids"], row["rejected_targets"]))
    return [
        Document(
            ids,
            targets,
            values={"reference": logp, "length": float(np.sum(targets[1:]))},
            unit=unit,
        )
        for (ids, targets), logp, unit in zip(sides, reference, (1, 0), strict=True)
    ]


def losses(
    objective: Objective, xp: Any, logps: Any, values: Mapping[str, Any], options: dict[str, float]
) -> Any:
    """(R,) loss of each pair from the log-probabilities (2 R,) of its documents; `xp`: the arrays' module."""
    assert objective.rewards and objective.pair_loss
    rewards = objective.rewards(logps, values, **options)
    return objective.pair_loss(xp, rewards[0::2], rewards[1::2], **options)


def statistics(
    objective: Objective, scores: np.ndarray, values: Mapping[str, Any], options: dict[str, float]
) -> np.ndarray:
    """(R, 7) of R pairs from what an engine says of their documents, (2 R, 3): loss, 1, ranked right (a tie is half),
    rewards of the chosen and of the rejected answer, nats and tokens of the chosen answer."""
    assert objective.rewards
    rewards = objective.rewards(-scores[:, 0], values, **options)
    chosen, rejected = rewards[0::2], rewards[1::2]
    right = np.where(chosen == rejected, 0.5, chosen > rejected)
    loss = losses(objective, np, -scores[:, 0], values, options)
    columns = [loss, np.ones_like(loss), right, chosen, rejected, *scores[0::2, :2].T]
    return np.stack(columns, axis=1)
