"""When should it ask a person? The promised rate of wrong answers holds, and too few rows promise nothing."""

import math
import re

import numpy as np
import pytest

from lorakit.common.errors import LorakitError
from lorakit.results.evidence import share, trust

SPLITS = 200


def population(rng, shape, n=20_000):
    """(confidence, whether right) of many questions to a model that is mostly right."""
    confidence = -rng.exponential(1.0, n)
    rate = {
        "calibrated": np.exp(confidence),
        "overconfident": np.clip(0.99 + 0.08 * confidence, 0, 1),
        "constant": np.full(n, 0.955),
        "useless": np.full(n, 0.7),
        "inverted": 1 - 0.5 * np.exp(confidence),
        "all but one value": np.where(confidence > -0.1, 1.0, 0.9),
    }[shape]
    if shape == "all but one value":
        confidence = np.round(confidence)
    return confidence, rng.random(n) < rate


@pytest.mark.parametrize(
    "shape",
    ["calibrated", "overconfident", "constant", "useless", "inverted", "all but one value"],
)
@pytest.mark.parametrize("rows", [60, 300])
@pytest.mark.parametrize("error", [0.05, 0.2])
def test_the_promised_rate_is_exceeded_in_at_most_a_tenth_of_the_splits(shape, rows, error):
    rng = np.random.default_rng(rows)
    confidence, right = population(rng, shape)
    exceeded = 0
    for _ in range(SPLITS):
        drawn = rng.integers(len(right), size=rows)
        found = trust.threshold(confidence[drawn], right[drawn], error)
        given = confidence > found.value
        given[drawn] = False
        exceeded += given.any() and (~right[given]).mean() > error
    assert exceeded <= SPLITS / 10


def test_a_good_model_answers_most_questions():
    rng = np.random.default_rng(0)
    confidence, right = population(rng, "overconfident", 400)
    found = trust.threshold(confidence, right, error=0.1)
    assert found.answered > 300 and found.wrong <= 0.1 * found.answered
    assert trust.threshold(confidence, np.ones(400, dtype=bool)).value == -math.inf


def test_without_a_mistake_45_rows_promise_one_in_twenty():
    assert trust.rows_needed(0.05, 0.9) == 45  # 0.95 ** 45 = 0.0994
    right, confidence = np.ones(45, dtype=bool), np.arange(45.0)
    assert trust.threshold(confidence, right).answered == 45
    assert trust.threshold(confidence[:44], right[:44]).value == math.inf
    assert trust.rows_needed(0.05, 0.9, rate=0.05) is None


@pytest.mark.parametrize(
    ("rows", "wrong", "words"),
    [
        (20, 0, "Cannot tell: 20 validation rows are too few .* 45 are needed"),
        (60, 30, r"Cannot promise at most 5 % .* 30 of 45 .* train a better model"),
        (100, 2, r"Cannot promise .* 2 of 50 \(4 %, 95 % interval 0 to 14 %\).* would do"),
    ],
)
def test_too_little_is_said_with_the_rows_it_would_take(rows, wrong, words):
    right = np.arange(rows) >= wrong
    sets = {"validation": (-np.arange(float(rows)), right), "test": (np.zeros(0), right[:0])}
    found = trust.threshold(*sets["validation"])
    said = trust.said(found, sets, 0.05, 0.9)
    assert not said.told and re.search(words, said.headline), said.headline


def test_the_check_on_test_rows_has_an_interval():
    confidence, right = -np.arange(100.0), np.ones(100, dtype=bool)
    sets = {"validation": (confidence, right), "test": (confidence, np.arange(100) != 99)}
    said = trust.said(trust.threshold(confidence, right), sets, 0.05, 0.9)
    assert (
        said.told
        and "Answers 100 % of the questions by itself (95 % interval 96 % to" in said.headline
    )
    assert "1 of 100 (1 %, 95 % interval 0 to 5 %) were wrong" in said.sentences[1]


@pytest.mark.parametrize("shares", [{"error": 7}, {"error": 0}, {"certainty": 1.0}])
def test_a_rate_that_is_no_share_is_refused_before_a_run_is_opened(shares):
    for refused in (
        lambda: trust.threshold(np.zeros(3), np.ones(3, dtype=bool), **shares),
        lambda: trust.measure("no such run", **shares),
    ):
        with pytest.raises(LorakitError) as raised:
            refused()
        assert {raised.value.setting: raised.value.value} == shares


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    assert share(0, 0) == (0.0, 1.0) and share(10, 10)[1] == 1.0
    assert share(1, 10) == pytest.approx((0.0025, 0.4450), abs=1e-4)
