import importlib
import math
import time

import numpy as np
import pytest

from lorakit.results.intervals import Interval, paired_difference, single


def mean(rows):
    return float(rows.mean())


def correlated(n, seed=0, gain=0.2, noise=0.3):
    """Two columns of shape (n, 1): the same difficulty per row, the second better by `gain` on average."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    before, after = (difficulty + rng.normal(scale=noise, size=n) for _ in range(2))
    return before[:, None], after[:, None] + gain


def width(interval):
    return interval.high - interval.low


def test_values():
    before, after, difference, interval = paired_difference(mean, np.zeros((4, 1)), np.ones((4, 1)))
    assert (before, after, difference) == (0.0, 1.0, 1.0)
    assert interval == Interval(1.0, 1.0, 0.95)
    assert single(mean, np.full((4, 1), 3.0)) == (3.0, Interval(3.0, 3.0, 0.95))


def test_two_rows_by_hand():
    """Resamples of (0, 1) have means 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    rows = np.array([[0.0], [1.0]])
    assert single(mean, rows, level=0.8)[1] == Interval(0.0, 1.0, 0.8)
    assert single(mean, rows, level=0.4)[1] == Interval(0.5, 0.5, 0.4)


def test_the_same_seed_gives_the_same_interval():
    rows = correlated(50)
    first = paired_difference(mean, *rows)
    assert first == paired_difference(mean, *rows)
    assert first[3] != paired_difference(mean, *rows, seed=1)[3]


def test_order_of_the_sides():
    before, after = correlated(80)
    *_, gain, up = paired_difference(mean, before, after)
    *_, loss, down = paired_difference(mean, after, before)
    assert gain == -loss
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))
    assert up.low < gain < up.high


def test_a_higher_level_is_wider():
    rows = correlated(80)
    widths = [width(paired_difference(mean, *rows, level=level)[3]) for level in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths) and widths[0] < widths[2]


def test_normal_theory():
    """For a mean the interval is close to value ± 1.96 standard errors."""
    rows = np.random.default_rng(0).normal(size=(1000, 1))
    value, interval = single(mean, rows)
    error = rows.std() / math.sqrt(1000)
    expected = value - 1.96 * error, value + 1.96 * error
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.006)


def test_coverage():
    """The true difference lies in the 95 % interval of 90 to 99 % of the data sets."""
    covered = 0
    for seed in range(200):
        *_, interval = paired_difference(mean, *correlated(60, seed=seed), resamples=500)
        covered += interval.low <= 0.2 <= interval.high
    assert 180 <= covered <= 198


def test_coverage_of_a_ratio():
    """The same for nats per token, a corpus value of two columns."""
    loss = importlib.import_module("lorakit.results.metrics.loss")
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(5, 50, size=60)
        difficulty = rng.gamma(4, 0.5, size=60)
        sides = [
            np.column_stack(
                [(difficulty + rng.normal(shift, 0.2, size=60)) * tokens, tokens, tokens]
            )
            for shift in (0, -0.1)
        ]
        *_, interval = paired_difference(loss.score, *sides, resamples=500)
        covered += interval.low <= -0.1 <= interval.high
    assert 180 <= covered <= 198


def test_pairing_matters():
    before, after = correlated(100)
    paired = paired_difference(mean, before, after)[3]
    alone = [single(mean, rows, seed=seed)[1] for seed, rows in enumerate((before, after))]
    unpaired = math.hypot(*map(width, alone))
    assert width(paired) < 0.5 * unpaired
    assert paired.low > 0
    shuffled = np.random.default_rng(1).permutation(after)
    assert width(paired_difference(mean, before, shuffled)[3]) > 2 * width(paired)


def test_both_sides_see_the_same_rows():
    rows = np.arange(20.0)[:, None]
    seen = []
    paired_difference(lambda part: seen.append(part.copy()) or 0.0, rows, rows, resamples=5)
    resampled = [part for part in seen if not np.array_equal(part, rows)]
    assert len(resampled) == 10
    for one, other in zip(resampled[::2], resampled[1::2]):
        assert np.array_equal(one, other)


def test_undefined_resamples_are_left_out():
    """The mean, undefined without row 0, which 1 - (1 - 1/n)^n of the resamples hold, about 64 %."""
    rows = np.arange(30.0)[:, None]
    value, interval = single(lambda part: mean(part) if (part == 0).any() else math.nan, rows)
    assert value == 14.5 and interval.low < 14.5 < interval.high


def test_mostly_undefined_resamples_give_no_interval():
    """Rows 0, 1 and 2 all occur in about a quarter of the resamples."""
    rows = np.arange(30.0)[:, None]

    def score(part):
        return mean(part) if {0, 1, 2} <= set(part[:, 0]) else math.nan

    value, interval = single(score, rows)
    assert (
        value == 14.5
        and math.isnan(interval.low)
        and math.isnan(interval.high)
        and interval.level == 0.95
    )


def test_an_undefined_value_has_no_interval():
    rows = np.ones((20, 1))
    rows[0] = math.nan
    before, after, difference, interval = paired_difference(mean, np.ones((20, 1)), rows)
    assert before == 1 and math.isnan(after) and math.isnan(difference) and math.isnan(interval.low)


def test_one_row_has_no_interval():
    before, after, difference, interval = paired_difference(mean, np.zeros((1, 1)), np.ones((1, 1)))
    assert (before, after, difference) == (0, 1, 1)
    assert math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize(
    "before, after, options, message",
    [
        (0, 0, {}, "no rows"),
        (3, 4, {}, "3 before, 4 after"),
        (3, 3, {"resamples": 0}, "resamples"),
        (3, 3, {"level": 95}, "level"),
    ],
)
def test_errors(before, after, options, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(mean, np.zeros((before, 1)), np.zeros((after, 1)), **options)


def seconds(score, before, after):
    start = time.process_time()
    paired_difference(score, before, after)
    return time.process_time() - start


def test_speed():
    metric = {
        name: importlib.import_module(f"lorakit.results.metrics.{name}")
        for name in ("f1", "roc_auc")
    }
    rng = np.random.default_rng(0)
    classes = list("abcd")
    references = rng.choice(classes, size=200).tolist()
    labels = [
        metric["f1"].rows(references, rng.choice(classes, size=200).tolist()) for _ in range(2)
    ]
    chances = [
        metric["roc_auc"].rows(references, rng.dirichlet(np.ones(4), size=200), classes=classes)
        for _ in range(2)
    ]
    assert seconds(mean, *correlated(1000)) < 1
    assert seconds(metric["f1"].score, *labels) < 3
    assert seconds(metric["roc_auc"].score, *chances) < 3


def test_pieces_of_one_text_are_drawn_together():
    """Ten texts in ten equal pieces each say no more than ten texts: the interval is that of the texts."""
    texts = np.random.default_rng(3).normal(size=10)
    pieces = np.repeat(texts, 10)[:, None]
    zero = np.zeros_like(pieces)
    groups = np.repeat([f"f:{i}" for i in range(10)], 10)
    *_, together = paired_difference(mean, zero, pieces, groups=groups)
    *_, whole = paired_difference(mean, np.zeros((10, 1)), texts[:, None])
    *_, apart = paired_difference(mean, zero, pieces)
    assert (together.low, together.high) == pytest.approx((whole.low, whole.high), abs=1e-12)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    *_, alone = paired_difference(mean, zero, pieces, groups=range(100))
    assert (alone.low, alone.high) == (apart.low, apart.high)
    *_, one = paired_difference(mean, zero, pieces, groups=["f:1"] * 100)
    assert np.isnan(one.low) and np.isnan(one.high)
