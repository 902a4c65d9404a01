"""Accuracy: share of rows whose predicted class is the reference class."""

from lorakit.results.metrics import exact_match

NEEDS = ("labels", "answers")
HIGHER_IS_BETTER = True


def rows(references, predictions):
    """Shape (n, 1): 1 where the class names are equal after trimming whitespace, else 0."""
    return exact_match.rows(references, predictions)


def score(rows):
    """Right / rows, 0 to 1."""
    return exact_match.score(rows)
