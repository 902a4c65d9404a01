"""Share of pairs whose chosen answer has the higher reward; a tie counts half, so that 0.5 is guessing."""

import numpy as np

NEEDS = ("pairs",)
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 1): 1, 0.5 or 0. ValueError when predictions have another shape than (n, 4)."""
    chosen, rejected, _, _ = columns(predictions)
    return np.where(chosen == rejected, 0.5, chosen > rejected).astype(np.float64)[:, None]


def score(rows):
    """Ranked right / pairs, 0 to 1."""
    return float(rows.mean()) if len(rows) else float("nan")


def columns(predictions):
    """Rewards of the chosen and of the rejected answer, nats and tokens of the chosen one: (n,) each."""
    found = np.asarray(predictions, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"expected (n, 4) columns of pairs; got shape {found.shape}")
    return found.T
