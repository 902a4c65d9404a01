"""Share of the tool calls that should be made of which a call can be read at all: its JSON parses and it has a name."""

import numpy as np

from lorakit.results.metrics.call_match import score  # noqa: F401
from lorakit.tasks.calls import comparable

NEEDS = ("answers",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 2): whether the row counts, and whether a call can be read."""
    stats = []
    for reference, prediction in zip(references, predictions, strict=True):
        expected, made = comparable(reference), comparable(prediction)
        stats.append([bool(expected), bool(expected and made)])
    return np.array(stats, dtype=np.float64).reshape(-1, 2)
