"""Character error rate, by jiwer: character edits / characters of the references, spaces included."""

from lorakit.results.metrics import wer

NEEDS = ("answers",)
HIGHER_IS_BETTER = False
PACKAGES = ("jiwer",)


def rows(references, predictions, *, normalize=True):
    """Shape (n, 2): errors, characters of the reference. Options and errors as for `wer`."""
    import jiwer

    return wer.error_rows(
        jiwer.process_characters, jiwer.cer_default, references, predictions, normalize
    )


def score(rows):
    """Errors per reference character, from 0 up."""
    return wer.score(rows)
