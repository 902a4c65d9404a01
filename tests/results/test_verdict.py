"""Five runs with known outcomes, and what lies between them: the headline says what happened to the answers."""

import numpy as np
import pytest

from lorakit.results import evaluate
from lorakit.results.evaluate import Outcome, better
from lorakit.results.verdict import improvement, primary, verdict

CHAT = {"loss": {}, "perplexity": {}, "token_accuracy": {}, "exact_match": {}, "chrf": {}}
WORDS = ["seven boats", "a red tent", "clean water", "no road", "the north bridge", "two doctors"]
REFERENCES = [f"{WORDS[i % 6]} near {chr(97 + i % 26)}{i}" for i in range(120)]


def outcome(
    right: int, loss: float, rows: int = 120, wrong: str = "zzz", shift: int = 0
) -> Outcome:
    """A model that answers the first `right` rows as expected; its loss varies a little over the rows."""
    sums = np.array([[5 * loss * (1 + 0.02 * (i % 3)), 5, 3] for i in range(rows)])
    given = [r if (i - shift) % rows < right else wrong for i, r in enumerate(REFERENCES[:rows])]
    return Outcome(sums, given)


def judged(before: Outcome, after: Outcome, metrics=CHAT, answers=(), task="chat"):
    rows = len(before.answers)
    scores = evaluate.scores(metrics, before, after, REFERENCES[:rows], answers)
    return verdict(scores, task)


def test_a_run_that_made_the_answers_better():
    kind, headline = judged(outcome(14, 4.0), outcome(110, 0.4))
    assert kind == "better"
    assert headline.startswith(
        "Better: 110 of 120 test answers are exactly right; before training it was 14."
    )
    assert "The improvement is most likely between 72 and 87 percentage points." in headline


def test_a_run_that_made_the_answers_worse():
    kind, headline = judged(outcome(90, 0.5), outcome(20, 2.0))
    assert kind == "worse"
    assert headline.startswith(
        "Worse: 20 of 120 test answers are exactly right; before training it was 90."
    )


def test_only_the_loss_got_better():
    kind, headline = judged(outcome(0, 9.5), outcome(0, 5.5))
    assert kind == "open" and "Better" not in headline
    assert headline.startswith(
        "The loss fell, but the answers did not improve: exact match 0 → 0, chrF 0.08 → 0.08. "
        "Train longer or take a larger model."
    )


def test_the_loss_got_better_and_the_poor_answers_poorer():
    kind, headline = judged(outcome(0, 9.5, wrong="no tent"), outcome(0, 5.5, wrong="zzz"))
    assert kind == "worse"
    assert "The loss fell, but the answers did not improve: exact match 0 → 0" in headline
    assert headline.endswith("Train longer or take a larger model.")


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_too_few_rows_prove_nothing_however_well_they_look(rows):
    kind, headline = judged(outcome(0, 4.0, rows), outcome(rows, 0.1, rows))
    assert kind == "open"
    assert headline.startswith("Too few test rows to tell: exact match 0 → 1")
    assert "keep at least 6, better 100." in headline


def test_few_rows_say_what_they_could_not_show():
    kind, headline = judged(outcome(4, 1.0, 12), outcome(5, 1.0, 12, shift=3))
    assert kind == "open"
    assert "With 12 test rows, improvements below 42 percentage points would not be visible." in (
        headline
    )


def test_nothing_learnt():
    kind, headline = judged(outcome(30, 2.0), outcome(30, 2.0, shift=40))
    assert kind == "open"
    assert headline.startswith("No difference is shown: exact match 0.25 → 0.25")


def test_a_model_that_always_gives_the_most_frequent_answer_has_learnt_nothing():
    references = ["no"] * 70 + ["yes"] * 50
    sums = np.array([[5.0 + i % 2, 5, 3] for i in range(120)])
    before = Outcome(sums, ["?"] * 120)
    after = Outcome(sums * 0.5, ["no"] * 120)
    scores = evaluate.scores({"loss": {}, "exact_match": {}}, before, after, references, ["no"] * 9)
    kind, headline = verdict(scores)
    assert kind == "open"
    assert headline.startswith("Not better than a fixed answer: exact match 0 → 0.58 on 120")
    assert "“no” scores 0.58" in headline
    after = Outcome(sums * 0.5, [*["no"] * 118, "yes", "yes"])
    scores = evaluate.scores({"loss": {}, "exact_match": {}}, before, after, references, ["no"] * 9)
    kind, headline = verdict(scores)
    assert kind == "open"
    assert headline.startswith("Not shown to be better than a fixed answer: exact match 0 → 0.6 on")


def test_metrics_of_answers_that_disagree_are_not_called_better():
    scores = {
        "exact_match": entry(0.2, 0.4, [0.1, 0.3]),
        "chrf": entry(50.0, 30.0, [-25.0, -15.0]),
        "loss": entry(2.0, 1.0, [-1.2, -0.8], higher=False),
    }
    kind, headline = verdict(scores)
    assert kind == "open" and headline.startswith(
        "Mixed: exact match 0.2 → 0.4 is better, but chrF 50.0 → 30.0 is worse."
    )


def test_the_loss_alone_decides_only_where_there_is_no_answer():
    loss = {"loss": entry(3.0, 2.0, [-1.1, -0.9], higher=False)}
    assert verdict(loss, "text").kind == "better"
    assert verdict(loss, "chat").kind == verdict(loss).kind == "open"
    assert "no answer was scored" in verdict(loss).headline


def test_an_error_rate_that_fell_is_better():
    scores = {"wer": entry(0.9, 0.2, [-0.8, -0.6], higher=False), "loss": entry(3, 3, [-1, 1])}
    assert verdict(scores, "transcribe").headline == (
        "Better: word error rate 0.9 → 0.2 on 40 test rows. The improvement is most likely between 60 and 80 "
        "percentage points."
    )


def test_nothing_scored():
    assert verdict({}) == ("open", "Nothing was scored: there were no test rows.")


def test_three_rows_of_one_direction_are_not_evidence():
    assert better(entry(0.0, 1.0, [1.0, 1.0], rows=5)) is None
    assert better(entry(0.0, 1.0, [1.0, 1.0], rows=6)) is True
    assert better({**entry(0.0, 1.0, [1.0, 1.0], rows=60), "groups": 2}) is None


@pytest.mark.parametrize(
    ("metric", "scored", "expected"),
    [
        ("exact_match", (0.5, 0.75, [0.25, 0.25]), (0.5, 0.5, 0.5)),
        ("loss", (4.0, 1.0, [-3.2, -2.8]), (0.75, 0.7, 0.8)),
        ("wer", (0.5, 1.0, [0.25, 0.75]), (-1.0, -1.5, -0.5)),
        ("chrf", (20.0, 60.0, [32.0, 48.0]), (0.5, 0.4, 0.6)),
        ("my_metric", (1.0, 1.0, [0.0, 0.0]), (0.0, 0.0, 0.0)),
    ],
)
def test_an_improvement_points_in_one_direction_for_every_metric(metric, scored, expected):
    found = improvement(metric, entry(*scored, higher=metric not in ("loss", "wer")))
    assert found == pytest.approx(expected)


def test_what_matters_most_is_an_answer_that_is_not_zero_before_and_after():
    zero = entry(0.0, 0.0, [0.0, 0.0])
    assert primary({"loss": zero, "exact_match": zero, "chrf": entry(1.0, 2.0, [0, 2])}) == "chrf"
    assert primary({"loss": zero, "exact_match": zero}) == "exact_match"
    assert primary({"loss": zero, "mine": zero, "token_accuracy": zero}) == "mine"
    assert primary({}) == ""


def entry(before, after, interval, higher=True, rows=40):
    return {
        "before": before,
        "after": after,
        "difference": after - before,
        "interval": interval,
        "rows": rows,
        "higher_is_better": higher,
    }
