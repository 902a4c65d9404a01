"""`model: outputs/a`: a run that is trained on from another."""

import json
import shutil

import pytest
import torch
from helpers.runs import tiny_run
from peft import PeftModel
from transformers import AutoModelForCausalLM

import lorakit
from lorakit import cli
from lorakit.common.errors import LorakitError
from lorakit.models import base_model, identity
from lorakit.models.parent import parent
from lorakit.results.open_run import open_run


@pytest.fixture
def child(finished, rows_file, tmp_path, quick):
    """A run on a copy of the finished one."""
    shutil.copytree(finished.path, tmp_path / "outputs" / "first")
    run = tiny_run(
        str(tmp_path / "outputs" / "first"), rows_file, tmp_path / "outputs", name="second"
    )
    return lorakit.finetune(run)


def test_it_begins_where_the_first_one_ended(finished, child):
    """Answered before training as the first one answers after it, and as plain PEFT merges it."""
    scores = finished.scores["loss"]
    assert child.scores["loss"]["before"] == pytest.approx(scores["after"], abs=1e-6)
    merged = AutoModelForCausalLM.from_pretrained(
        base_model.path(str(child.path.with_name("first")))
    )
    base = AutoModelForCausalLM.from_pretrained(finished.record["base"]["path"])
    expected = PeftModel.from_pretrained(base, finished.path / "adapter").merge_and_unload()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=0, atol=1e-6)


def test_record_and_report_name_the_first_one(finished, child):
    noted = child.record["parent"]
    assert noted["run"] == str(child.path.with_name("first").resolve())
    assert (
        noted["files"] == finished.record["files"]
        and noted["updates"] == finished.record["updates"]
    )
    assert "its adapter is merged into the weights of" in child.record["choices"]["model"][1]
    assert (
        "trained on from: the run"
        in lorakit.results.report.write(child.path).with_suffix(".md").read_text()
    )


@pytest.mark.slow
def test_both_folders_moved_and_the_cache_forgotten(child, tmp_path, monkeypatch):
    """What was merged elsewhere is the same base, though its last bits may differ."""
    answer = lorakit.ask(child.path, ["abcde efgha bcdef ghabc?"])
    (tmp_path / "outputs").rename(tmp_path / "moved")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "empty cache"))
    monkeypatch.chdir(tmp_path)
    base_model._opened.cache_clear()
    assert lorakit.ask(tmp_path / "moved" / "second", ["abcde efgha bcdef ghabc?"]) == answer


@pytest.mark.slow
def test_a_merged_base_with_other_weights_is_another_base(child):
    from safetensors.torch import load_file, save_file

    first = str(child.path.with_name("first"))
    weights = next(p for p in map(str, [base_model.path(first)])) + "/model.safetensors"
    before, tensors = identity.base(first), load_file(weights)
    try:
        save_file({n: v * 1.01 for n, v in tensors.items()}, weights, {"format": "pt"})
        assert identity.base(first).differences(before) == ["weights"]
        with pytest.raises(LorakitError, match="has another weights than this run was tuned on"):
            open_run(child.path)
    finally:
        save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize("how", ["adapter", "status", "base"])
def test_what_is_no_whole_run_is_refused(copied, how, tmp_path):
    named = copied.path
    if how == "adapter":
        content = bytearray((copied / "adapter/adapter_model.safetensors").read_bytes())
        content[-1] ^= 1
        (copied / "adapter/adapter_model.safetensors").write_bytes(content)
        named = copied / "adapter"
        message = "has changed since the run saved it"
    elif how == "status":
        copied.note(status="stopped")
        message = "has status stopped, and only a finished one can be trained on from"
    else:
        record = json.loads((copied / "record.json").read_text())
        record["base"]["weights"] = "0" * 64
        (copied / "record.json").write_text(json.dumps(record))
        message = "has another weights than this run was tuned on"
    with pytest.raises(LorakitError, match=message):
        parent(str(named))


def test_an_adapter_without_its_run_is_no_base(finished, tmp_path):
    shutil.copytree(finished.path / "adapter", tmp_path / "alone")
    with pytest.raises(LorakitError, match="is an adapter, no model by itself") as found:
        base_model.path(str(tmp_path / "alone"))
    assert "name the run that it belongs to" in found.value.cure


def test_continue_is_a_run_of_its_own(copied, monkeypatch, capsys):
    from lorakit.commands import training

    asked = []
    monkeypatch.setattr(training, "_trained", lambda run: asked.append(run) or 0)
    assert cli.main(["train", str(copied.path), "--continue", "--set", "learning_rate=5e-4"]) == 0
    (run,) = asked
    assert run.model == str(copied.path) and run.learning_rate == 5e-4
    assert run.folder != copied.path and not run.folder.exists()
    assert cli.main(["train", str(copied.path)]) == 1
    assert "--continue trains on from it" in capsys.readouterr().err
