"""Mean cross-entropy per target token, in nats: summed loss / number of target tokens."""

import numpy as np

NEEDS = ("tokens",)
HIGHER_IS_BETTER = False


def rows(references, predictions):
    """Shape (n, 3): summed loss in nats, target tokens, tokens predicted right. References are ignored.

    ValueError when predictions have another shape.
    """
    counts = np.asarray(predictions, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[1] != 3:
        raise ValueError(f"expected (n, 3) columns loss, tokens, right; got shape {counts.shape}")
    return counts


def score(rows):
    """Nats per target token; nan without target tokens."""
    nats, tokens, _ = rows.sum(axis=0)
    return float(nats / tokens) if tokens else float("nan")
