"""A finished run after whatever may have happened to it, under every command: right or refused, never another answer."""

import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
from helpers.runs import tiny_run
from safetensors.numpy import load_file, save_file

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.exporting.serve import merged
from lorakit.models.base_model import file_sha256
from lorakit.training.finetune import finetune

pytestmark = pytest.mark.slow
QUESTION = "abcde efgha bcdef ghabc?"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}={{ m['content'] }}<|end|>{% endfor %}"


def ask(run, model):
    return lorakit.ask(run, [QUESTION], model=model)


def evaluate(run, model):
    path, _ = lorakit.rescore(run, model=model)
    found = json.loads(path.read_text())
    path.unlink()
    return {name: (each["before"], each["after"]) for name, each in found.items()}


def export(run, model):
    out = lorakit.export(run, "merged", run.parent / "exported", type="fp32", model=model)
    return file_sha256(out / "model.safetensors")


def serve(run, model):
    return file_sha256(merged(run, model) / "model.safetensors")


def compare(run, model):
    found = lorakit.compare(run.parent / "twin", run)
    return [{k: v for k, v in line.items() if k not in ("name", "run")} for line in found.table()]


def resume(run, model):
    """Two updates more than it had."""
    changes = {"name": run.name, "output_dir": str(run.parent), "max_updates": 14}
    settings = lorakit.Run.read(run / "run.yaml", **changes, **({"model": model} if model else {}))
    return file_sha256(finetune(settings) / "adapter/adapter_model.safetensors")


COMMANDS = {f.__name__: f for f in (ask, evaluate, export, serve, compare, resume)}


@pytest.fixture(scope="module")
def made(tmp_path_factory, base, rows_file):
    """(a folder with a base, a run on it by a relative path and a twin of the run; what each command gives there)."""
    home = tmp_path_factory.mktemp("made") / "home é"
    shutil.copytree(base, home / "base")
    before = os.getcwd()
    os.chdir(home)
    try:
        with local():
            lorakit.finetune(
                tiny_run("base", rows_file, "outputs", dropout=0.0, schedule="constant")
            )
        shutil.copytree("outputs/run", "outputs/twin")
    finally:
        os.chdir(before)
    expected = {}
    for name, command in COMMANDS.items():
        copy = shutil.copytree(home, tmp_path_factory.mktemp("expected") / "home é")
        os.chdir(copy)
        try:
            with local():
                expected[name] = command(copy / "outputs/run", None)
        finally:
            os.chdir(before)
    return home.rename(home.with_name("kept")), expected  # nothing is left where the record says


def local():
    """Proofs in this process."""
    from lorakit.exporting import fresh_process

    stack = __import__("contextlib").ExitStack()
    stack.enter_context(mock.patch("lorakit.training.proof.repeated", return_value={}))
    stack.enter_context(mock.patch.object(fresh_process, "ask_in_fresh_process", fresh_process.ask))
    return stack


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def noise(path):
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + np.float32(0.5)}, path, {"format": "pt"})


def note(run, part, **changes):
    record = json.loads((run / "record.json").read_text())
    record[part] |= changes
    (run / "record.json").write_text(json.dumps(record))


def renamed(home, elsewhere):
    return (home / "outputs/run").rename(home / "outputs/another name"), home, None


def moved(home, elsewhere):
    return shutil.move(home / "outputs", elsewhere / "outputs") / "run", elsewhere, None


def copied(home, elsewhere):
    """To another clone and another Python: nothing of the place where it was made is left."""
    there = shutil.copytree(home, elsewhere / "clone")
    shutil.rmtree(home)
    note(there / "outputs/run", "versions", python="3.12.1")
    return there / "outputs/run", there, None


def base_moved(home, elsewhere):
    shutil.move(home / "base", elsewhere / "base")
    return home / "outputs/run", home, None


def base_moved_and_named(home, elsewhere):
    shutil.move(home / "base", elsewhere / "base")
    return home / "outputs/run", home, str(elsewhere / "base")


def base_changed(home, elsewhere):
    noise(home / "base/model.safetensors")
    return home / "outputs/run", home, None


def config_changed(home, elsewhere):
    path = home / "base/config.json"
    rope = {"rope_theta": 5e5, "rope_type": "default"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": rope}))
    return home / "outputs/run", home, None


def adapter_changed(home, elsewhere):
    noise(home / "outputs/run/adapter/adapter_model.safetensors")
    return home / "outputs/run", home, None


def template_changed(home, elsewhere):
    (home / "base/chat_template.jinja").write_text(TEMPLATE)
    return home / "outputs/run", home, None


def saved_template_changed(home, elsewhere):
    (home / "outputs/run/adapter/chat_template.jinja").write_text(TEMPLATE)
    return home / "outputs/run", home, None


def rows_damaged(home, elsewhere):
    for path in (home / "outputs/run/rows").rglob("*.arrow"):
        flip(path)
    return home / "outputs/run", home, None


RIGHT, REFUSED = "right", "refused"
EVENTS = {
    renamed: dict.fromkeys(COMMANDS, RIGHT),
    # A setting that names the base from another working folder is no path here any more.
    moved: dict.fromkeys(COMMANDS, RIGHT) | {"resume": REFUSED},
    copied: dict.fromkeys(COMMANDS, RIGHT),
    base_moved: dict.fromkeys(COMMANDS, REFUSED) | {"compare": RIGHT},
    base_moved_and_named: dict.fromkeys(COMMANDS, RIGHT),
    base_changed: dict.fromkeys(COMMANDS, REFUSED) | {"compare": RIGHT},
    config_changed: dict.fromkeys(COMMANDS, REFUSED) | {"compare": RIGHT},
    # Compared are what the runs wrote down; a checkpoint holds its own weights.
    adapter_changed: dict.fromkeys(COMMANDS, REFUSED) | {"compare": RIGHT, "resume": RIGHT},
    template_changed: dict.fromkeys(COMMANDS, RIGHT) | {"resume": REFUSED},
    saved_template_changed: dict.fromkeys(COMMANDS, REFUSED) | {"compare": RIGHT, "resume": RIGHT},
    rows_damaged: dict.fromkeys(COMMANDS, REFUSED) | {"ask": RIGHT, "compare": RIGHT},
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_right_or_refused(made, tmp_path, monkeypatch, event, command):
    home, expected = made
    home = shutil.copytree(home, tmp_path / "home é")
    note(home / "outputs/run", "base", path=str(home / "base"))  # as if it had been made here
    (tmp_path / "elsewhere").mkdir()
    run, place, model = event(home, tmp_path / "elsewhere")
    monkeypatch.chdir(place)
    try:
        with local():
            found = COMMANDS[command](run, model)
    except LorakitError as error:
        assert EVENTS[event][command] == REFUSED, error
        assert (
            error.setting
            or error.where
            or "has changed since" in str(error)
            or "there," in str(error)
        )
    else:
        assert (EVENTS[event][command], found) == (RIGHT, expected[command])
