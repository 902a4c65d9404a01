"""Perplexity per target token: exp(loss), with the loss in nats per token over all selected rows."""

import numpy as np

from lorakit.results.metrics import loss

NEEDS = ("tokens",)
HIGHER_IS_BETTER = False
rows = loss.rows


def score(rows):
    """From 1 (certain and right) up; inf past the range of float64; nan without target tokens."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss.score(rows)))
