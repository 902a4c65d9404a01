"""Share of rows with tool calls whose answer calls the right tools, whatever it gives them."""

import numpy as np

from lorakit.results.metrics.call_match import score  # noqa: F401
from lorakit.tasks.calls import comparable

NEEDS = ("answers",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 2): whether the row counts, and whether its calls name the right tools."""
    stats = []
    for reference, prediction in zip(references, predictions, strict=True):
        expected, made = comparable(reference), comparable(prediction)
        names = [[name for name, _ in calls or ()] for calls in (expected, made)]
        stats.append([bool(expected), bool(expected) and names[0] == names[1]])
    return np.array(stats, dtype=np.float64).reshape(-1, 2)
