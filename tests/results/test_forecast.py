"""How many more rows? Forecasts from small runs cover what larger ones reached, on recorded curves."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import forecast

# 12 curves of classifiers on public rows: per run and test row whether it was right.
CURVES = json.loads(Path(__file__).with_name("learning_curves.json").read_text())


def known(curve):
    """(training rows, errors, errors of their logarithms)"""
    rows = [int(n) for n in curve["runs"]]
    answers = [["yes" if c == "1" else "no" for c in right] for right in curve["runs"].values()]
    outcomes = [Outcome(np.zeros((len(a), 3)), a) for a in answers]
    errors, spreads, best, higher = forecast.measured(
        "exact_match", {}, outcomes, ["yes"] * len(answers[0])
    )
    assert best == 1 and higher
    return rows, errors, spreads


def test_the_score_with_all_rows_lies_in_the_interval():
    inside = []
    for curve in CURVES:
        rows, errors, spreads = known(curve)
        fitted = forecast.fit(rows[:3], errors[:3], spreads[:3])
        _, low, high = fitted.observed(rows[3], spreads[2])
        inside.append(low <= errors[3] <= high)
        assert high - low < 0.2  # and says something
    assert len(CURVES) >= 10 and sum(inside) >= 0.8 * len(CURVES), inside


def told(rows, errors, spread=0.1, tested=200):
    return forecast.said("exact_match", rows, errors, [spread] * len(rows), 1.0, tested)


def test_a_curve_that_falls_forecasts_a_gain():
    rows = [100, 200, 300, 400]
    said = told(rows, [0.4 * (n / 100) ** -0.7 for n in rows], spread=0.03)
    assert said.told and "400 more rows like these would bring: exact match" in said.headline
    fitted = forecast.fit(rows, [0.4 * (n / 100) ** -0.7 for n in rows], [0.03] * 4)
    middle, low, high = fitted.interval(fitted.error(800))
    assert low < 0.4 * 8**-0.7 < high and middle == pytest.approx(0.4 * 8**-0.7, rel=0.2)
    assert len(said.sentences) == 2 and all("80 % interval" in s for s in said.sentences)


def test_a_flat_curve_says_that_more_rows_will_not_help():
    said = told([100, 200, 300, 400], [0.1, 0.101, 0.1, 0.099], spread=0.15)
    assert said.headline.startswith("More rows of this kind will not help visibly")


@pytest.mark.parametrize(
    ("rows", "tested", "words"),
    [
        ([200, 400], 200, "2 runs are too few for a curve; at least 3 are needed"),
        ([100, 200, 300, 400], 12, "12 test rows are too few; at least 30 are needed"),
        (
            [8, 16, 24, 32],
            200,
            "smallest run has 8 training rows, at least 20 are needed: 80 in all",
        ),
    ],
)
def test_too_little_is_said_with_what_it_would_take(rows, tested, words):
    said = told(rows, [0.2] * len(rows), tested=tested)
    assert not said.told and words in said.headline


def test_a_loss_is_better_when_it_is_lower():
    outcomes = [Outcome(np.tile([2.0 / k, 1, 1], (50, 1)), [None] * 50) for k in (1, 2, 4)]
    errors, _, best, higher = forecast.measured("loss", {}, outcomes, [None] * 50)
    assert errors == pytest.approx([2.0, 1.0, 0.5]) and best == 0 and not higher


def test_runs_on_parts_of_the_rows(run, quick):
    """The same test rows, nested training rows, and nothing trained twice."""
    from unittest import mock

    from lorakit.tasks.dataset import prepare
    from lorakit.training import forecast as training

    short = run.with_(max_updates=2)
    rows = prepare(short).rows["train"]
    some, more = (training.first_of(rows, share, 0) for share in (0.25, 0.5))
    assert len(some) == 16 and set(some) < set(more)
    said = training.forecast(short, shares=(0.5,))
    assert not said.told and said.figures["rows"] == [32, 64]
    assert (short.folder / "forecast/50%/outcomes/after.json").is_file()
    with mock.patch("lorakit.training.forecast.Session.load", side_effect=AssertionError):
        assert training.forecast(short, shares=(0.5,)).figures["errors"] == said.figures["errors"]
