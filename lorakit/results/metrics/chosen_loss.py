"""Nats per token of the chosen answers: whether a model that learns to rank still knows how to speak."""

import numpy as np

from lorakit.results.metrics import preference_accuracy

NEEDS = ("pairs",)
HIGHER_IS_BETTER = False


def rows(references, predictions):
    """Shape (n, 2): nats and tokens of the chosen answer."""
    _, _, nats, tokens = preference_accuracy.columns(predictions)
    return np.stack([nats, tokens], axis=1)


def score(rows):
    """Nats / tokens."""
    nats, tokens = rows.sum(axis=0)
    return float(nats / tokens) if tokens else float("nan")
