"""Word error rate, by jiwer: (substitutions + deletions + insertions) / words of the references."""

import numpy as np

NEEDS = ("answers",)
HIGHER_IS_BETTER = False
PACKAGES = ("jiwer",)


def rows(references, predictions, *, normalize=True):
    """Shape (n, 2): errors, words of the reference.

    normalize: lower case, punctuation deleted (Unicode categories P*), whitespace collapsed.
    ValueError for a reference without words, lists of unequal length.
    """
    import jiwer

    return error_rows(jiwer.process_words, jiwer.wer_default, references, predictions, normalize)


def error_rows(process, split, references, predictions, normalize):
    """Errors and reference length per row, by jiwer's `process` on units made by jiwer's `split`."""
    import jiwer

    clean = [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.SubstituteRegexes({r"\s+": " "})]
    units = jiwer.Compose([*clean, split]) if normalize else split
    stats = []
    for number, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        found = process(reference, prediction, units, units)
        length = found.hits + found.substitutions + found.deletions
        if not length:
            raise ValueError(f"row {number}: the reference {reference!r} is empty")
        stats.append([found.substitutions + found.deletions + found.insertions, length])
    return np.array(stats, dtype=np.float64).reshape(-1, 2)


def score(rows):
    """Errors per reference word, from 0 up; above 1 when insertions abound."""
    errors, length = rows.sum(axis=0)
    return float(errors / length) if length else float("nan")
