"""Mean reward of the chosen answer minus that of the rejected one; what a reward is, the objective says."""

import numpy as np

from lorakit.results.metrics import preference_accuracy

NEEDS = ("pairs",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 2): rewards of the chosen and of the rejected answer, nan where a row has none."""
    return preference_accuracy.rows(references, predictions)


def score(rows):
    """The mean of the chosen answers minus the mean of the rejected ones."""
    sides = [side[~np.isnan(side)] for side in rows.T]
    return float(sides[0].mean() - sides[1].mean()) if all(map(len, sides)) else float("nan")
