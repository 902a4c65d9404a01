"""A finished run is known by its content: moved, renamed, copied or tampered with, it is right or refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.models import save_base
from helpers.runs import tiny_run

import lorakit
from lorakit import cli
from lorakit.common.errors import LorakitError
from lorakit.models import identity
from lorakit.results.open_run import open_run

QUESTION = "abcde efgha bcdef ghabc?"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}={{ m['content'] }}<|end|>{% endfor %}"


@pytest.fixture
def place(tmp_path, base, rows_file):
    """A folder with a base, a run on it by a relative path, and the answers of the run where it was made."""
    from unittest import mock

    shutil.copytree(base, tmp_path / "home é" / "base")
    before = os.getcwd()
    os.chdir(tmp_path / "home é")
    try:
        with mock.patch("lorakit.training.proof.repeated", return_value={}):
            lorakit.finetune(tiny_run("base", rows_file, "outputs", dropout=0.0))
        answers = lorakit.ask("outputs/run", [QUESTION])
    finally:
        os.chdir(before)
    return tmp_path / "home é", answers


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    """The same architecture with other weights."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=False,
        bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    return save_base(tmp_path_factory.mktemp("other"), config, seed=1)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def noise(path, share=1.0):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + np.float32(share)
    save_file(tensors, path, {"format": "pt"})


def test_a_run_answers_from_another_folder(place, tmp_path, monkeypatch):
    home, answers = place
    monkeypatch.chdir(tmp_path)
    assert lorakit.ask(home / "outputs" / "run", [QUESTION]) == answers


def test_plain_peft_finds_the_base_from_another_folder(place, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    home, _ = place
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(home / "outputs" / "run" / "adapter")
    assert model.peft_config["default"].r


@pytest.mark.slow
@pytest.mark.parametrize("how", ["renamed", "moved", "copied", "moved with its base"])
def test_a_run_that_went_elsewhere_answers_the_same(place, tmp_path, monkeypatch, how):
    home, answers = place
    run = home / "outputs" / "run"
    if how == "renamed":
        new = run.rename(run.with_name("another name"))
    elif how == "moved":
        new = Path(shutil.move(run, tmp_path / "elsewhere"))
    elif how == "copied":
        new = Path(shutil.copytree(run, tmp_path / "copy" / "run"))
    else:
        home.rename(tmp_path / "new home")
        new = tmp_path / "new home" / "outputs" / "run"
    monkeypatch.chdir(tmp_path)
    assert lorakit.ask(new, [QUESTION]) == answers


def test_a_moved_base_is_named_and_compared(place, tmp_path, other_base, capsys):
    home, answers = place
    run = home / "outputs" / "run"
    (home / "base").rename(tmp_path / "new base")
    with pytest.raises(LorakitError, match=r"is not there") as found:
        lorakit.ask(run, QUESTION)
    assert found.value.setting == "model" and "--model PATH" in found.value.cure
    assert lorakit.ask(run, [QUESTION], model=str(tmp_path / "new base")) == answers
    assert cli.main(["ask", str(run), QUESTION, "--model", str(tmp_path / "new base")]) == 0
    assert capsys.readouterr().out.strip() == answers[0].strip()
    with pytest.raises(LorakitError, match="has another weights than this run was tuned on"):
        lorakit.ask(run, QUESTION, model=other_base)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "configuration"])
def test_a_changed_base_is_refused(place, monkeypatch, what):
    home, _ = place
    monkeypatch.chdir(home)
    if what == "weights":
        noise(home / "base" / "model.safetensors")
    else:
        edit(
            home / "base" / "config.json",
            rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
        )
    for call in (lorakit.ask, lorakit.rescore, lambda run, _=None: lorakit.export(run, "adapter")):
        with pytest.raises(
            LorakitError, match=f"now has another {what} than this run was tuned on"
        ):
            call("outputs/run", *([QUESTION] if call is lorakit.ask else []))


def test_the_template_of_the_run_is_used_whatever_the_base_has_now(place, monkeypatch):
    home, answers = place
    monkeypatch.chdir(home)
    (home / "base" / "chat_template.jinja").write_text(TEMPLATE)
    assert open_run("outputs/run").tokenizer.chat_template != TEMPLATE
    assert lorakit.ask("outputs/run", [QUESTION]) == answers


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "tokenizer.json"],
)
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_saved_file_that_is_not_the_run_s_is_refused(place, name, how):
    path = place[0] / "outputs" / "run" / "adapter" / name
    if how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(LorakitError, match="is missing|has changed since") as found:
        lorakit.ask(path.parents[1], QUESTION)
    assert found.value.where == str(path) and found.value.cure


def test_damaged_training_rows_do_not_matter_to_a_question_but_to_an_evaluation(place, monkeypatch):
    home, answers = place
    monkeypatch.chdir(home)
    for path in (home / "outputs" / "run" / "rows").rglob("*.arrow"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()  # the cache and other runs of these rows share the file
        path.write_bytes(content)
    assert lorakit.ask("outputs/run", [QUESTION]) == answers
    for call in (lorakit.rescore, lambda run: lorakit.export(run, "adapter")):
        with pytest.raises(LorakitError, match="has changed since the run saved it"):
            call("outputs/run")


def test_weights_kept_as_bin_files_are_looked_at(tmp_path, base):
    import torch
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(base, tmp_path / "bin"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    first = identity.base(str(folder))
    tensors[min(tensors)] += 1
    torch.save(tensors, folder / "pytorch_model.bin")
    assert first.weights and identity.base(str(folder)).differences(first) == ["weights"]


def test_what_a_library_writes_about_itself_is_no_other_base(tmp_path, base):
    folder = Path(shutil.copytree(base, tmp_path / "again"))
    first = identity.base(str(folder))
    edit(folder / "config.json", transformers_version="9.9.9")
    assert identity.base(str(folder)).differences(first) == []


@pytest.mark.slow
def test_an_evaluation_stands_beside_the_first_one_and_names_rows_it_cannot_use(place, monkeypatch):
    home, _ = place
    monkeypatch.chdir(home)
    run = home / "outputs" / "run"
    before = (run / "scores.json").read_bytes()
    first, _ = lorakit.rescore("outputs/run")
    second, _ = lorakit.rescore("outputs/run")
    assert (first.name, second.name) == ("scores-again.json", "scores-again-2.json")
    assert (run / "scores.json").read_bytes() == before
    good = {"prompt": "qwert yuiop asdfg hjkl?", "completion": "no"}
    lines = [
        json.dumps(good),
        '{"prompt": "x"',
        json.dumps({"prompt": "y", "completion": None}),
        json.dumps({"prompt": "z"}),
    ]
    (home / "more.jsonl").write_text("\n".join(lines) + "\n")
    path, notes = lorakit.rescore("outputs/run", data="more.jsonl")
    listed = [
        json.loads(line)["row"] for line in (run / "rejected-more.jsonl").read_text().splitlines()
    ]
    assert path.name == "scores-more.json" and sorted(listed) == [2, 3, 4]
    assert any(note.startswith("3 rows could not be used") for note in notes)
