"""Corpus BLEU (Papineni et al. 2002), by sacrebleu: 4-grams, `exp` smoothing, 0 to 100."""

import numpy as np

NEEDS = ("answers",)
HIGHER_IS_BETTER = True


def rows(references, predictions, *, tokenize="13a", lowercase=False):
    """Shape (n, 10): prediction length, reference length, matched 1- to 4-grams, predicted 1- to 4-grams.

    tokenize: sacrebleu's tokenizer, e.g. "zh" or "char" for text without spaces. lowercase: fold case.
    ValueError for lists of unequal length.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    parts = [metric.sentence_score(p, [r]) for r, p in zip(references, predictions, strict=True)]
    stats = [[part.sys_len, part.ref_len, *part.counts, *part.totals] for part in parts]
    return np.array(stats, dtype=np.float64).reshape(-1, 10)


def score(rows):
    """BLEU of the summed statistics, 0 to 100, equal to sacrebleu's `corpus_score`."""
    from sacrebleu.metrics import BLEU

    if not len(rows):
        return float("nan")
    predicted, reference, *counts = rows.sum(axis=0).astype(int).tolist()
    return BLEU.compute_bleu(
        counts[:4], counts[4:], predicted, reference, smooth_method="exp"
    ).score
