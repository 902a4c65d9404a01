"""General questions before and after a run: how many are asked, at what cost, and what is kept."""

import json
from types import SimpleNamespace

import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.machine.distributed import ALONE
from lorakit.planning.setup import setup
from lorakit.results import evidence, report
from lorakit.results.evidence import forgotten
from lorakit.training import forgetting


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 0.0),  # too short a run
        ({"general_questions": 0}, 0.0),
        ({"general_questions": 60}, float("inf")),
        ({"general_questions": 60, "folds": 2, "fold": 1}, 0.0),
        ({"general_questions": 60, "shuffle_answers": True}, 0.0),  # a control
    ],
)
def test_how_long_may_be_asked(base, rows_file, tmp_path, changes, seconds):
    plan = setup(tiny_run(base, rows_file, tmp_path, **changes))
    assert forgetting.seconds_allowed(plan) == seconds


def test_a_long_run_gives_a_twentieth_of_its_time_to_either_side(run, monkeypatch):
    monkeypatch.setattr(forgetting, "SHORTEST", 0)
    plan = setup(run)
    monkeypatch.setattr(type(plan), "seconds", lambda self: (600.0, 1))
    assert forgetting.seconds_allowed(plan) == 30.0


@pytest.mark.parametrize(("pace", "asked"), [(0.1, 201), (0.25, 112), (0.7, 16)])
def test_questions_end_when_the_time_is_spent(monkeypatch, pace, asked):
    """`pace` seconds a question, of 30: all, those that fit, or none when fewer than 50 would."""
    clock = [0.0]
    monkeypatch.setattr(forgetting.time, "monotonic", lambda: clock[0])
    more, done = forgetting.within(30.0, SimpleNamespace(world=ALONE), 201), 0
    while done < 201 and more(done):
        done = min(201, done + 16)
        clock[0] = pace * done
    assert done == asked


def test_any_beginning_holds_as_many_of_each_kind():
    kinds = [item["kind"] for item in forgotten.spread(forgotten.suite())]
    assert len(kinds) == 201 and {kinds[:70].count(kind) for kind in {*kinds}} == {10}


def test_a_run_keeps_what_it_forgot(base, rows_file, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(forgotten, "replies", spoken := Spoken())
    folder = lorakit.finetune(tiny_run(base, rows_file, tmp_path, general_questions=56))
    assert len(json.loads((folder / "outcomes/general_questions.json").read_text())) == 56
    (kept,) = evidence.kept(folder)
    assert kept.told and kept.headline.startswith("It forgot: -100 points")
    assert "A sample of 56 of 201 questions" in kept.sentences[1] and spoken.asked == 112
    report.write(folder.path)
    assert "What did it forget?" in (folder / "report.md").read_text()


class Spoken:
    """Answers every question rightly until training has been."""

    def __init__(self):
        self.asked = 0

    def __call__(self, engine, meta, questions, max_new_tokens):
        before, self.asked = self.asked < 56, self.asked + len(questions)
        return [SimpleNamespace(text="right" if before else "wrong")] * len(questions)


@pytest.fixture(autouse=True)
def one_right_word(monkeypatch):
    monkeypatch.setattr(forgotten, "right", lambda answer, rule, value: answer == "right")


def test_a_task_without_chats_has_no_questions(base, tmp_path):
    rows = tmp_path / "text.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"row {i} of many words"}) + "\n" for i in range(40))
    )
    with pytest.raises(LorakitError) as raised:
        setup(tiny_run(base, str(rows), tmp_path, general_questions=60))
    assert raised.value.setting == "general_questions"
