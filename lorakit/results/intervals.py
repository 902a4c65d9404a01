"""Percentile bootstrap intervals (Efron & Tibshirani 1993, ch. 13) over rows of sufficient statistics."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Confidence interval from `low` to `high` at `level` (0.95 for 95 %); nan where there is none."""

    low: float
    high: float
    level: float


def paired_difference(
    score, before_rows, after_rows, *, groups=None, resamples=2000, level=0.95, seed=0
):
    """(before, after, after - before, Interval of the difference), paired by row.

    Each resample draws one set of row indices for both sides (as Koehn 2004 for BLEU) and recomputes the
    corpus value of each. `score` maps rows of shape (n, k) to a float; `before_rows` and `after_rows` hold
    the same rows of data in the same order. Rows with the same value in `groups` (n,), pieces of one text, are drawn
    together: they are no independent evidence (Cameron & Miller 2015). Undefined resamples (nan or infinite) are left
    out. The interval is (nan, nan) for one row, an undefined difference, or more than half of the resamples undefined.
    ValueError for no rows, sides of unequal length, fewer than one resample, a level outside (0, 1).
    """
    before_rows, after_rows = np.asarray(before_rows), np.asarray(after_rows)
    if len(before_rows) != len(after_rows):
        raise ValueError(
            f"rows cannot be paired: {len(before_rows)} before, {len(after_rows)} after"
        )

    def difference(index):
        return score(after_rows[index]) - score(before_rows[index])

    value, interval = _bootstrap(difference, len(after_rows), resamples, level, seed, groups)
    return float(score(before_rows)), float(score(after_rows)), value, interval


def single(score, rows, *, resamples=2000, level=0.95, seed=0):
    """(value, Interval) of `score` over `rows`, shape (n, k). Rules and errors as for `paired_difference`."""
    rows = np.asarray(rows)
    return _bootstrap(lambda index: score(rows[index]), len(rows), resamples, level, seed)


def _bootstrap(statistic, n, resamples, level, seed, groups=None):
    if n == 0:
        raise ValueError("no rows to score")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"needs resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    value = float(statistic(slice(None)))
    drawn = (
        np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    members = (
        [np.flatnonzero(drawn == g) for g in range(drawn.max() + 1)]
        if len(np.unique(drawn)) < n
        else None
    )
    units = len(members) if members else n
    if units == 1 or not np.isfinite(value):
        return value, Interval(np.nan, np.nan, level)
    rng = np.random.default_rng(seed)

    def resample():
        index = rng.integers(units, size=units)
        return np.concatenate([members[g] for g in index]) if members else index

    values = np.array([statistic(resample()) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if 2 * len(values) < resamples:
        return value, Interval(np.nan, np.nan, level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return value, Interval(float(low), float(high), level)
