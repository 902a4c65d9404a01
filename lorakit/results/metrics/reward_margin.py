"""Mean reward of the chosen answer minus that of the rejected one; what a reward is, the objective says."""

import numpy as np

from lorakit.results.metrics import preference_accuracy

NEEDS = ("pairs",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 1): the margin of each pair."""
    chosen, rejected, _, _ = preference_accuracy.columns(predictions)
    return np.asarray(chosen - rejected)[:, None]


def score(rows):
    """The mean margin."""
    return float(rows.mean()) if len(rows) else float("nan")
