"""Corpus chrF (Popovic 2015), by sacrebleu: character 1- to 6-grams, beta 2, 0 to 100."""

import numpy as np

NEEDS = ("answers",)
HIGHER_IS_BETTER = True


def rows(references, predictions, *, word_order=0):
    """Shape (n, 3 * (6 + word_order)): for each order the predicted, reference and matched n-grams.

    word_order: highest word n-gram counted besides the characters; 2 is chrF++ (Popovic 2017).
    ValueError for lists of unequal length.
    """
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=word_order)
    pairs = zip(references, predictions, strict=True)
    stats = [metric._extract_corpus_statistics([p], [[r]])[0] for r, p in pairs]
    return np.array(stats, dtype=np.float64).reshape(-1, 3 * metric.order)


def score(rows):
    """chrF of the summed statistics, 0 to 100, equal to sacrebleu's `corpus_score`."""
    from sacrebleu.metrics import CHRF

    if not len(rows):
        return float("nan")
    word_order = rows.shape[1] // 3 - CHRF.CHAR_ORDER
    return float(CHRF(word_order=word_order)._compute_f_score(rows.sum(axis=0).tolist()))
