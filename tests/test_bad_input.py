"""Damaged files and settings that make no sense: one message that says what and where, before anything is spent."""

import shutil
from pathlib import Path

import pytest

import lorakit
from lorakit.errors import LorakitError


@pytest.mark.parametrize("metrics, words", [
    ([{}], "metrics: {} is not one metric"),
    ([{"bleu": {}, "chrf": {}}], "is not one metric"),
    (["exakt_match"], "did you mean 'exact_match'"),
    ([{"exact_match": {"pattern": "("}}], "metrics: exact_match: missing )"),
    ([{"exact_match": {"foo": 1}}], "unexpected keyword argument 'foo'"),
    ([{"exact_match": {"pattern": "#### (.*)"}}], "row 0"),
])
def test_a_metric_that_cannot_be_computed_is_refused_before_training(run, quick, metrics, words):
    bad = run.with_(metrics=metrics)
    with pytest.raises(LorakitError) as error:
        lorakit.finetune(bad)
    assert words in str(error.value)
    assert lorakit.Folder(bad.folder).history() == ([], [])


def test_target_modules_that_are_no_expression(run):
    with pytest.raises(LorakitError, match="target_modules='\\[' is no regular expression"):
        run.with_(target_modules="[")


def test_a_configuration_that_makes_no_sense(run, base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}')
    with pytest.raises(LorakitError, match="could not be loaded: .*hidden_size"):
        lorakit.finetune(run.with_(model=str(tmp_path / "base")))


@pytest.mark.parametrize("name, content, words", [
    ("history.jsonl", "xx\n", "history.jsonl:1: is damaged"),
    ("scores.json", "{", "scores.json: is damaged"),
])
def test_damaged_files_of_a_run_are_named(copied, name, content, words):
    from lorakit.report import write

    (copied / name).write_text(content)
    with pytest.raises(LorakitError) as error:
        write(copied.path)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_named(copied, name):
    (copied / "adapter" / name).write_text("{")
    with pytest.raises(LorakitError, match="adapter: the adapter cannot be loaded"):
        lorakit.ask(copied.path, "abc?")


def test_notebooks_that_are_none(tmp_path):
    pytest.importorskip("papermill")
    from lorakit.notebook import execute

    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(LorakitError, match="bad.ipynb: cannot be read as a notebook"):
        execute(tmp_path / "bad.ipynb", {})
    real = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
    with pytest.raises(LorakitError, match="-p rank \\[: the value cannot be read as YAML"):
        execute(real, {"rank": "["}, tmp_path)
