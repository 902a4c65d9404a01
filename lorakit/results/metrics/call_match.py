"""Share of rows whose calls equal the reference: same tools, equal arguments; no call where none is expected."""

import numpy as np

from lorakit.tasks.calls import comparable

NEEDS = ("answers",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 2): whether the row counts, and whether it is right. Arguments are compared as JSON values."""
    stats = []
    for reference, prediction in zip(references, predictions, strict=True):
        expected, made = comparable(reference), comparable(prediction)
        stats.append([True, made is not None and expected == made])
    return np.array(stats, dtype=np.float64).reshape(-1, 2)


def score(rows):
    """Right / rows that count, 0 to 1."""
    counted, right = rows.sum(axis=0)
    return float(right / counted) if counted else float("nan")
