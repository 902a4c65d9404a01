"""ROUGE F-measure (Lin 2004), by rouge-score without stemming, averaged over the rows.

Its tokens are runs of a-z and 0-9: text in other scripts has none and scores 0.
"""

import numpy as np

NEEDS = ("answers",)
HIGHER_IS_BETTER = True
PACKAGES = ("rouge-score",)
VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rows(references, predictions, *, variant="rougeL"):
    r"""Shape (n, 1): F-measure, 0 to 1.

    variant: rouge1 and rouge2 count n-grams, rougeL takes the longest common subsequence, rougeLsum the
    union of these over sentences, which "\n" separates.
    ValueError for another variant, lists of unequal length, references in which rouge-score sees no token.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
    if references and not any(map(DefaultTokenizer().tokenize, references)):
        raise ValueError(
            "ROUGE sees only a-z and 0-9, and no reference has any; chrf suits every script"
        )
    scorer = RougeScorer([variant])
    pairs = zip(references, predictions, strict=True)
    stats = [scorer.score(r, p)[variant].fmeasure for r, p in pairs]
    return np.array(stats, dtype=np.float64).reshape(-1, 1)


def score(rows):
    """Mean F-measure, 0 to 1."""
    return float(rows.mean()) if len(rows) else float("nan")
