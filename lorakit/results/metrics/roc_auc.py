"""Area under the ROC curve, as `sklearn.metrics.roc_auc_score`; one-vs-rest macro for three classes or more.

Mann-Whitney form with mid-ranks (Hanley & McNeil 1982): the same number, fast enough to bootstrap.
"""

import numpy as np

NEEDS = ("probabilities",)
HIGHER_IS_BETTER = True


def rows(references, predictions, *, classes):
    """Shape (n, 2m): for each scored class 1 if it is the reference's, then the probability of each.

    Two classes: m = 1, the second of `classes` is the positive one. More: m = C, each against the rest.
    ValueError for fewer than two classes, an unknown class name, another shape, nan or inf.
    """
    classes, probabilities = list(classes), np.asarray(predictions, dtype=np.float64)
    if len(classes) < 2:
        raise ValueError(f"ROC-AUC needs two classes or more, got {classes}")
    if probabilities.shape != (len(references), len(classes)):
        raise ValueError(
            f"expected probabilities of shape {(len(references), len(classes))} "
            f"(rows, classes), got {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    for number, name in enumerate(references):
        if name not in classes:
            raise ValueError(
                f"row {number}: the reference {name!r} is none of the classes {classes}"
            )
    positive = np.array([[name == c for c in classes] for name in references], dtype=np.float64)
    scored = slice(1, None) if len(classes) == 2 else slice(None)
    return np.hstack([positive.reshape(probabilities.shape)[:, scored], probabilities[:, scored]])


def score(rows):
    """AUC, 0 to 1; nan unless every scored class has rows inside and outside it."""
    from scipy.stats import rankdata

    positive, probability = np.hsplit(rows, 2)
    inside = positive.sum(axis=0)
    pairs = inside * (len(rows) - inside)
    if not pairs.all():
        return float("nan")
    wins = (rankdata(probability, axis=0) * positive).sum(axis=0) - inside * (inside + 1) / 2
    return float((wins / pairs).mean())
