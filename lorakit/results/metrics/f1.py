"""F1, as `sklearn.metrics.f1_score`: per class 2 * hits / (references + predictions), then averaged.

Counted directly, because a bootstrap calls `score` thousands of times.
"""

import numpy as np

NEEDS = ("labels",)
HIGHER_IS_BETTER = True
AVERAGES = ("macro", "micro", "weighted")


def rows(references, predictions, *, average="macro"):
    """Shape (n, 3): class number of the reference, of the prediction, index of `average` in AVERAGES.

    average: macro weights every class that occurs in the references or predictions of the selection alike,
    weighted by its number of references; micro pools the counts.
    ValueError for another average, lists of unequal length.
    """
    if average not in AVERAGES:
        raise ValueError(f"average {average!r} is none of {', '.join(AVERAGES)}")
    pairs = list(zip(references, predictions, strict=True))
    _, codes = np.unique(np.array(pairs, dtype=str), return_inverse=True)
    codes = codes.reshape(-1, 2)
    return np.column_stack([codes, np.full(len(codes), AVERAGES.index(average))]).astype(np.float64)


def score(rows):
    """The averaged F1, 0 to 1."""
    if not len(rows):
        return float("nan")
    reference, prediction, average = rows.astype(int).T
    classes = max(reference.max(), prediction.max()) + 1
    hits = np.bincount(reference[reference == prediction], minlength=classes)
    support = np.bincount(reference, minlength=classes)
    size = support + np.bincount(prediction, minlength=classes)
    weights = {"macro": size > 0, "micro": size, "weighted": support}[AVERAGES[average[0]]]
    return float(np.average(2 * hits / np.maximum(size, 1), weights=weights.astype(float)))
