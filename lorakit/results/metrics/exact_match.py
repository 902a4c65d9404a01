"""Exact match: share of answers that equal the reference, both trimmed of surrounding whitespace."""

import re

import numpy as np

NEEDS = ("answers",)
HIGHER_IS_BETTER = True


def rows(references, predictions, *, pattern=None, ignore_case=False):
    r"""Shape (n, 1): 1 for a match, else 0.

    pattern: regular expression with a group; the first group of its last match is compared instead of the
    whole text, e.g. r"####\s*(-?[\d.,]+)". A prediction without a match is wrong.
    ignore_case: compare case-folded text.
    ValueError for a reference without a match, a pattern without a group, lists of unequal length.
    """
    if pattern is not None and not re.compile(pattern).groups:
        raise ValueError(
            f"the pattern {pattern!r} needs a group, in parentheses, that holds the answer"
        )

    def answer(text):
        if pattern is not None:
            found = [match[1] for match in re.finditer(pattern, text)]
            text = found[-1] if found else None
        if text is None:
            return None
        return text.strip().casefold() if ignore_case else text.strip()

    expected, given = map(answer, references), map(answer, predictions)
    stats = []
    for number, (right, said) in enumerate(zip(expected, given, strict=True)):
        if right is None:
            raise ValueError(
                f"row {number}: the pattern {pattern!r} finds nothing in the reference"
            )
        stats.append([right == said])
    return np.array(stats, dtype=np.float64).reshape(-1, 1)


def score(rows):
    """Matches / rows, 0 to 1."""
    return float(rows.mean()) if len(rows) else float("nan")
