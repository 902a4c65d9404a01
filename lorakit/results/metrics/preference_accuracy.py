"""Share of pairs whose chosen answer has the higher reward; a tie counts half, so that 0.5 is guessing.

Of answers that stand alone every desirable one is compared with every undesirable one: the area under the ROC curve.
"""

import numpy as np

NEEDS = ("pairs",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 2): rewards of the chosen and of the rejected answer, nan where a row has none.

    ValueError when predictions have another shape than (n, 4).
    """
    return np.stack(columns(predictions)[:2], axis=1)


def score(rows):
    """Ranked right / pairs, 0 to 1."""
    chosen, rejected = rows.T
    if not np.isnan(rows).any():
        wins = np.where(chosen == rejected, 0.5, chosen > rejected)
        return float(wins.mean()) if len(rows) else float("nan")
    chosen, rejected = (np.sort(side[~np.isnan(side)]) for side in (chosen, rejected))
    if not len(chosen) or not len(rejected):
        return float("nan")
    below = [np.searchsorted(rejected, chosen, side) for side in ("left", "right")]
    return float(np.mean(below) / len(rejected))


def columns(predictions):
    """Rewards of the chosen and of the rejected answer, nats and tokens of the chosen one: (n,) each."""
    found = np.asarray(predictions, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"expected (n, 4) columns of pairs; got shape {found.shape}")
    return found.T
