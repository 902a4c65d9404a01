"""Settings found by the validation loss: no test row is touched, poor trials end early, a cut search goes on."""

import importlib
import os
import signal

import pytest
from helpers.runs import tiny_run

from lorakit.common.errors import LorakitError
from lorakit.runs.folder import Folder, RunFolder
from lorakit.training import search

optuna = pytest.importorskip("optuna")
SPACE = {
    "rank": [2, 4],
    "learning_rate": (1e-5, 3e-3),
    "target_modules": {"attention": ["q_proj", "v_proj"], "all": "auto"},
}


@pytest.fixture
def asked(base, rows_file, tmp_path):
    return tiny_run(base, rows_file, tmp_path, name="search", rank=4, max_new_tokens=4)


@pytest.fixture(scope="module")
def found(base, rows_file, tmp_path_factory):
    """(the run, its study of six trials, what was said)"""
    run, said = (
        tiny_run(base, rows_file, tmp_path_factory.mktemp("search"), name="search", rank=4),
        [],
    )
    return run, search.search(run, SPACE, 6, startup=2, say=said.append), said


def test_a_trial_reads_no_test_row_and_gives_the_lowest_validation_loss(asked, monkeypatch):
    seen, evaluate = [], importlib.import_module("lorakit.results.evaluate")
    sums = evaluate.token_sums
    monkeypatch.setattr(
        evaluate,
        "token_sums",
        lambda engine, rows, **limits: (seen.extend(rows.contents()), sums(engine, rows, **limits))[
            1
        ],
    )
    loss = search.tried(asked)
    sets = search.prepare(asked).rows
    assert set(seen) == set(sets["validation"].contents()) and len(sets["test"]) > 0
    validations = Folder(asked.folder).history()[1]
    assert [v["update"] for v in validations] == [3, 6, 9, 12]
    assert loss == min(v["validation_loss"] for v in validations)
    assert not (asked.folder / "record.json").exists() and not (asked.folder / "adapter").exists()


@pytest.mark.slow
def test_what_a_trial_promises_is_what_the_run_shows(found, quick):
    import lorakit

    run, study, _ = found
    folder = lorakit.finetune(
        run.with_(name="winner", **search.settings_of(study.best_trial, SPACE))
    )
    assert min(v["validation_loss"] for v in folder.history()[1]) == study.best_value


def test_the_first_trial_is_the_runs_own_and_the_best_is_the_lowest(found):
    _, study, said = found
    first = study.trials[0]
    assert first.params == {"rank": 4, "learning_rate": 1e-3, "target_modules": "all"}
    assert search.settings_of(first, SPACE) == {
        "rank": 4,
        "learning_rate": 1e-3,
        "target_modules": "auto",
    }
    done = [t.value for t in study.trials if t.state.name == "COMPLETE"]
    assert study.best_value == min(done) < max(done)
    assert [line.split(":")[0] for line in said] == [f"trial {n}" for n in range(6)]


def test_poor_trials_are_ended_early_and_leave_no_weights(found):
    run, study, said = found
    pruned = [t for t in study.trials if t.state.name == "PRUNED"]
    assert pruned and all(max(t.intermediate_values) <= 12 for t in pruned)
    assert sum("ended at update" in line for line in said) == len(pruned)
    assert not list((run.folder / "trials").glob("*/checkpoint"))
    kinds = [kind for kind, _, _ in search.curves(study)]
    assert kinds.count("pruned") == len(pruned) and len(kinds) == 6


def test_started_again_it_does_only_what_is_missing(found):
    run, study, _ = found
    said = []
    again = search.search(run, SPACE, 6, startup=2, say=said.append)
    assert not said and [t.params for t in again.trials] == [t.params for t in study.trials]


@pytest.mark.slow
def test_a_cut_trial_goes_on_from_its_checkpoint(asked, tmp_path, monkeypatch):
    space = {"rank": [2, 4]}
    whole = search.search(asked.with_(name="whole"), space, 2, say=lambda _: None)
    seen = RunFolder.append

    def cut(self, line):
        seen(self, line)
        if line["update"] == 6 and "loss" in line:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append", cut)
    with pytest.raises(KeyboardInterrupt):
        search.search(asked, space, 2, say=lambda _: None)
    monkeypatch.setattr(RunFolder, "append", seen)
    study = search.search(asked, space, 2, say=lambda _: None)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert (
        study.trials[1].params == whole.trials[0].params
        and study.trials[1].value == whole.trials[0].value
    )
    assert study.trials[1].intermediate_values == whole.trials[0].intermediate_values
    (folder,) = (Folder(p) for p in (asked.folder / "trials").glob("rank-4-*"))
    assert [u["update"] for u in folder.history()[0]] == list(range(1, 13))


def test_a_trial_that_cannot_be_trained_is_named_and_the_others_go_on(asked):
    said = []
    study = search.search(
        asked, {"target_modules": {"none": ["nothing_proj"], "all": "auto"}}, 3, say=said.append
    )
    assert any(
        "failed: target_modules" in line and "no layer 'nothing_proj'" in line for line in said
    )
    assert study.best_trial.params == {"target_modules": "all"}
    with pytest.raises(LorakitError, match="no trial came to its end; the first: .*nothing_proj"):
        search.search(
            asked.with_(name="bad"),
            {"target_modules": {"none": ["nothing_proj"]}},
            1,
            say=said.append,
        )


@pytest.mark.parametrize(
    "space, words",
    [
        ({}, "the space is empty"),
        ({"ranc": [4]}, "unknown setting 'ranc'"),
        ({"rank": [0]}, "rank=0"),
        ({"rank": 4}, "rank=4: give a list"),
        ({"learning_rate": (0, 1)}, "no pair"),
        ({"validation_fraction": [0.1, 0.2]}, "validation_fraction cannot be searched"),
        ({"model": ["tiny"]}, "model cannot be searched"),
    ],
)
def test_a_space_without_sense_is_refused(asked, space, words):
    with pytest.raises(LorakitError, match=words):
        search.search(asked, space, 1)


def test_another_search_in_the_same_folder_is_refused(found):
    run, *_ = found
    with pytest.raises(LorakitError, match=r"other settings \(max_updates, space\)"):
        search.search(run.with_(max_updates=6), {"rank": [2, 4]}, 6)


def test_without_validation_rows_there_is_nothing_to_judge_by(asked):
    with pytest.raises(LorakitError, match="raise validation_fraction"):
        search.tried(asked.with_(validation_fraction=0))


def test_the_setting_that_matters_is_the_most_important_one():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(
        lambda t: t.suggest_float("much", 0, 1) + 0.05 * t.suggest_float("little", 0, 1),
        n_trials=30,
    )
    shares = search.importances(study)
    assert (
        list(shares) == ["much", "little"]
        and sum(shares.values()) == pytest.approx(1)
        and shares["much"] > 0.8
    )
    assert search.importances(optuna.create_study()) == {}
