"""The base is asked once: a control, or a run trained otherwise on the same rows, reads what it said."""

import json
import shutil
from types import SimpleNamespace

import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.machine.distributed import ALONE
from lorakit.planning.setup import setup
from lorakit.tasks.rows import read
from lorakit.training import base_outcome
from lorakit.training import finetune as module


@pytest.fixture
def asked(monkeypatch, tmp_path, quick):
    """The moments at which a model was asked; the cache is this test's own."""
    moments, real = [], module.predict
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))

    def predict(*given, when, **options):
        moments.append(when)
        return real(*given, when=when, **options)

    monkeypatch.setattr(module, "predict", predict)
    return moments


def scores(run):
    lorakit.finetune(run)
    return {name: entry["before"] for name, entry in run_scores(run).items()}


def run_scores(run):
    return json.loads((run.folder / "scores.json").read_text())


def answers(run):
    lines = (run.folder / "answers.jsonl").read_text().splitlines()
    return [json.loads(line)["before"] for line in lines]


def test_a_control_reads_what_the_base_said(base, rows_file, tmp_path, asked):
    run = tiny_run(base, rows_file, tmp_path, max_updates=2)
    first = scores(run)
    assert asked == ["before", "after"]
    asked.clear()
    control = run.with_(name="control", shuffle_answers=True, learning_rate=3e-4, max_updates=3)
    assert scores(control) == first
    assert asked == ["after"]
    assert answers(control) == answers(run)


def test_what_bears_on_the_answers_asks_again(base, rows_file, tmp_path, asked):
    run = tiny_run(base, rows_file, tmp_path, max_updates=1)
    folder = lorakit.finetune(run)
    plan, sets = setup(run), read(folder.rows, None)

    def key(generate=True, **changes):
        settings = plan.settings.with_(**changes)
        session = SimpleNamespace(folder=folder, run=settings, meta=sets[1], world=ALONE)
        return base_outcome.key(plan, session, generate)

    assert key() == key(learning_rate=3e-4, epochs=7, name="other", shuffle_answers=True)
    assert len({key(), key(False), key(max_new_tokens=4), key(seed=1), key(rank=4)}) == 5


@pytest.mark.slow
def test_another_base_is_asked_and_a_damaged_entry_is_not_believed(
    base, rows_file, tmp_path, asked
):
    run = tiny_run(base, rows_file, tmp_path, max_updates=1)
    first = scores(run)
    for kept in (tmp_path / "cache").glob("before-*/outcome.json"):
        kept.write_text("{")
    asked.clear()
    assert scores(run.with_(name="again")) == first
    assert asked == ["before", "after"]
    other = shutil.copytree(base, tmp_path / "other")
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    asked.clear()
    lorakit.finetune(run.with_(name="other", model=str(other)))
    assert asked == ["before", "after"]
