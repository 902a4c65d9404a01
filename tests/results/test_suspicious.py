"""Which training answers are wrong? Planted wrong answers come first, and of sound files nothing stands out."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lorakit.common.errors import LorakitError
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import suspicious

ROWS = 600


def judged(seed, planted=0.0, sharpness=1.0):
    """(log p of own answer, of the file's, tokens, equal?, planted?) of models that know how sure they are.

    `sharpness` above 1: they are surer than they may be.
    """
    rng = np.random.default_rng(seed)
    chance = rng.beta(8, 0.5, ROWS)  # of the own answer to be right
    wrong = rng.random(ROWS) < planted
    agree = (rng.random(ROWS) < chance) & ~wrong
    rest = rng.random(ROWS) ** 2 * np.where(
        wrong, 0.1, 1.0
    )  # share of what is left for the file's answer
    shown = 1 - (1 - chance) ** sharpness
    own = np.log(np.clip(shown, 1e-9, 1 - 1e-9))
    given = np.where(agree, own, np.log(np.maximum((1 - np.exp(own)) * rest, 1e-12)))
    return own, given, np.full(ROWS, 12), agree, wrong


def test_planted_wrong_answers_lie_in_the_first_tenth_of_the_list():
    found = []
    for seed in range(5):
        *columns, wrong = judged(seed, planted=0.05)
        ranking = suspicious.rank(*columns)
        assert wrong[ranking.order[: ROWS // 10]].sum() >= 0.8 * wrong.sum()
        assert ranking.standing_out[wrong].mean() > 0.4
        found.append(ranking.found)
    assert sum(found) >= 4


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_of_a_clean_file_nothing_stands_out(sharpness):
    found = [suspicious.rank(*judged(seed, sharpness=sharpness)[:4]).found for seed in range(8)]
    assert sum(found) <= 1


def lines(n):
    return [
        {"where": f"rows.jsonl:{i}", "prompt": f"q{i}", "reference": "yes", "own": "no"}
        for i in range(n)
    ]


def test_too_few_rows_say_how_many_it_takes(tmp_path):
    ranking = suspicious.rank(*(column[:40] for column in judged(0)[:4]))
    said = suspicious.said(ranking, lines(40), tmp_path / "x.csv")
    assert (
        not said.told
        and said.headline == "Cannot tell: 40 rows are too few; at least 100 are needed."
    )


def test_what_is_found_is_said_with_an_interval(tmp_path):
    ranking = suspicious.rank(*judged(0, planted=0.05)[:4])
    said = suspicious.said(ranking, lines(ROWS), tmp_path / "x.csv")
    assert re.search(r"contradict \d+ of 600 \(\d+ %, 95 % interval \d+ to \d+ %\)", said.headline)
    assert len(said.table) == 1 + suspicious.SHOWN and said.table[1][1:4][1:] == ["yes", "no"]
    clean = suspicious.said(suspicious.rank(*judged(0)[:4]), lines(ROWS), tmp_path / "x.csv")
    assert clean.told and clean.headline.startswith("Nothing stands out") and not clean.table


def test_the_table_is_looked_through_and_applied(copied):
    ranking = suspicious.rank(*(column[:3] for column in judged(0, planted=1.0)[:4]))
    answers = [json.loads(line) for line in copied.answers.read_text().splitlines()]
    made = [{**line, "where": row["where"]} for line, row in zip(lines(3), answers, strict=False)]
    table = suspicious.write_table(copied, made, ranking)
    content = list(csv.DictReader(table.open()))
    assert len(content) == 3
    for line, decision, answer in zip(content, ("drop", "FIX", ""), ("", "maybe", "ignored")):
        line["decision"] = decision
        line["answer"] = answer
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, suspicious.COLUMNS)
        writer.writeheader()
        writer.writerows(content)
    target = copied / "clean.jsonl"
    assert suspicious.cleaned(copied.path, target) == {"keep": 78, "drop": 1, "fix": 1}
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == 79
    assert sum(row["messages"][-1]["content"] == "maybe" for row in rows) == 1
    with pytest.raises(LorakitError) as raised:
        suspicious.cleaned(copied.path, target)
    assert raised.value.cure == "name another file"
    table.write_text(table.read_text().replace("FIX", "burn"))
    with pytest.raises(LorakitError) as raised:
        suspicious.decisions(copied.path)
    assert raised.value.value == "burn" and "suspicious.csv" in str(raised.value.where)


def test_a_run_without_folds_is_told_what_it_takes(copied):
    with pytest.raises(LorakitError) as raised:
        suspicious.measure(copied.path)
    assert raised.value.setting == "folds" and raised.value.cure == "train with folds=5"


def test_the_models_of_the_folds_judge_their_rows(copied, finished):
    for number in (1, 2):
        shutil.copytree(finished.path, copied / f"folds/fold-{number}")
    said = suspicious.measure(copied.path)
    answers = [json.loads(line) for line in finished.answers.read_text().splitlines()]
    wrong = [row["where"] for row in answers if row["after"] != row["reference"]]
    assert not said.told and f"{2 * len(answers)} rows are too few" in said.headline
    assert len(said.figures["margin"]) == 2 * len(answers)
    assert {row["row"] for row in suspicious.table(copied.path)} <= {*wrong}


def test_classes_are_judged_by_the_scores_that_are_there():
    shares = np.array([[0.9, 0.1], [0.25, 0.75]])
    known = Outcome(np.zeros((2, 3)), ["a", "b"], probabilities=shares, classes=["a", "b"])
    answers, own = suspicious._own(Path("nowhere"), known, None)
    assert answers == ["a", "b"] and np.exp(own).tolist() == pytest.approx([0.9, 0.75])
