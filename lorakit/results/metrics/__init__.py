"""Metrics: one file each, found by name in this folder.

A metric is a module `lorakit/results/metrics/<name>.py` with four names:

`NEEDS`
    Tuple of the kinds of input it can score; any one of them is enough.
    `"answers"`: references and predictions are lists of str.
    `"labels"`: references and predictions are lists of class names (str).
    `"probabilities"`: references is a list of class names, predictions an array (n, C) of class
    probabilities; the option `classes` gives the C names in column order.
    `"tokens"`: predictions is an array (n, 3), for each row the loss in nats summed over its target
    tokens, the number of these tokens, and how many of them were predicted right; references are ignored.
    `"pairs"`: predictions is an array (n, 4), for each pair the rewards of the chosen and of the
    rejected answer, and nats and tokens of the chosen one; references are ignored.
`HIGHER_IS_BETTER`
    bool.
`PACKAGES` (where it needs one that not every run has)
    Tuple of names as pip knows them; a run is refused before it trains when one is missing.
`rows(references, predictions, **options) -> np.ndarray`
    Sufficient statistics, float64, shape (n, k), one line per row of data, computed once. What `score`
    must know of the options travels in these columns. Raises ValueError for input that cannot be scored
    (row numbers in messages count from 0) and TypeError for an unknown option.
`score(rows) -> float`
    The corpus value of any selection of these lines, repeated lines included: a bootstrap resample is
    `score(stats[index])`. nan, without an exception or a warning, where the value is undefined, as for
    an empty selection.

Heavy libraries are imported inside the functions.
"""
