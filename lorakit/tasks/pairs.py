"""Pairs of answers to one prompt, of which people prefer the first: what preference objectives have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lorakit.tasks.protocol import Document, Row

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


def of(rewards: Callable[..., Any], pair_loss: Callable[..., Any]) -> tuple[Any, Any]:
    """`Objective.losses` and `Objective.statistics` of documents that are pairs, the chosen one first.

    `rewards`: (log-probabilities (2 R,), values, options) -> (2 R,); `pair_loss`: (the arrays' module, rewards of the
    chosen (R,) and of the rejected documents (R,), options) -> (R,).
    """

    def losses(xp: Any, logps: Any, values: Mapping[str, Any], options: Mapping[str, float]) -> Any:
        found = rewards(logps, values, **options)
        return pair_loss(xp, found[0::2], found[1::2], **options)

    def statistics(
        scores: np.ndarray, values: Mapping[str, Any], options: Mapping[str, float]
    ) -> np.ndarray:
        """A tie is half right."""
        found = rewards(-scores[:, 0], values, **options)
        chosen, rejected = found[0::2], found[1::2]
        right = np.where(chosen == rejected, 0.5, chosen > rejected)
        loss = losses(np, -scores[:, 0], values, options)
        columns = [loss, np.ones_like(loss), right, chosen, rejected, *scores[0::2, :2].T]
        return np.stack(columns, axis=1)

    return losses, statistics
