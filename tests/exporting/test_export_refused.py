"""An export that fails says why, and leaves nothing under its name."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tuned import left

from lorakit.common import processes
from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import child_environment

exporting = importlib.import_module("lorakit.exporting.round_trip")


@pytest.fixture
def mine(mistral, tmp_path):
    """A run that a test may damage."""
    return Path(shutil.copytree(mistral, tmp_path / "mine"))


def refused(run, target, out, words, **options):
    with pytest.raises(LorakitError, match=words):
        exporting.export(run, target, out, **options)
    assert left(out.parent) == []


def test_a_run_that_is_not_done(mine, tmp_path):
    record = json.loads((mine / "record.json").read_text())
    (mine / "record.json").write_text(json.dumps(record | {"status": "stopped"}))
    refused(mine, "gguf", tmp_path / "at" / "out", "has status stopped; this needs done")


def test_another_base_than_it_was_tuned_on(mine, tmp_path):
    record = json.loads((mine / "record.json").read_text())
    base = record["base"] | {"weights": "0" * 64}
    (mine / "record.json").write_text(json.dumps(record | {"base": base}))
    refused(
        mine, "gguf", tmp_path / "at" / "out", "now has another weights than this run was tuned on"
    )


def test_an_adapter_of_another_base(mine, tmp_path):
    settings = json.loads((mine / "adapter" / "adapter_config.json").read_text())
    (mine / "adapter" / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "someone/other"})
    )
    refused(
        mine, "merged", tmp_path / "at" / "out", "adapter_config.json: has changed since the run"
    )


def test_an_adapter_of_another_shape_in_a_run_without_hashes(mine, tmp_path, here):
    from safetensors.numpy import load_file, save_file

    record = json.loads((mine / "record.json").read_text())
    (mine / "record.json").write_text(
        json.dumps(record | {"format": 1, "base": None, "files": None})
    )
    path = mine / "adapter" / "adapter_model.safetensors"
    tensors = {k: v[:, :-32] if "lora_A" in k else v for k, v in load_file(path).items()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, {"format": "pt"})
    refused(mine, "merged", tmp_path / "at" / "out", "was it made for another base")


def test_a_missing_chat_template(mine, tmp_path):
    (mine / "adapter" / "chat_template.jinja").unlink()
    refused(mine, "gguf", tmp_path / "at" / "out", "chat_template.jinja: is missing")


def test_unknown_targets_and_types(mistral, tmp_path):
    refused(
        mistral, "ggfu", tmp_path / "out", "there is no export format 'ggfu'; did you mean 'gguf'"
    )
    refused(
        mistral,
        "gguf",
        tmp_path / "out",
        "--type q8 of gguf: there is no such type; there are q8_0, .*; did you mean 'q8_0'",
        type="q8",
    )


def test_a_folder_that_is_no_export_stays(mistral, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LorakitError, match="is there already and holds no export"):
        exporting.export(mistral, "gguf", tmp_path)
    assert left(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_room_is_looked_at_first(mistral, tmp_path, monkeypatch, what):
    import psutil

    if what == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    else:
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2**34)
        )
    where = "on the disk" if what == "disk" else "of memory"
    refused(
        mistral,
        "gguf",
        tmp_path / "out",
        rf"f32 of 0.00 billion weights needs 0.0 GB {where} while it is made",
        type="f32",
    )


def test_a_full_disk_leaves_nothing(mistral, tmp_path, here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lorakit.exporting.gguf.files.packed", full)
    refused(
        mistral, "gguf", tmp_path / "at" / "out", "could not be written: No space left on device"
    )


def test_another_model_is_not_called_done(mistral, tmp_path, here, monkeypatch):
    """Here the export forgets that llama.cpp rotates neighbours."""
    monkeypatch.setattr("lorakit.exporting.gguf.tensors.interleave", lambda value, heads: value)
    refused(
        mistral,
        "gguf",
        tmp_path / "at" / "out",
        "gguf f32: the export is another model than the tuned one: the loss on the run's rows grows by",
        type="f32",
    )


def test_other_tokens_are_not_called_done(mistral, tmp_path, here, monkeypatch):
    import gguf

    every = gguf.GGUFWriter.add_token_merges
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_token_merges", lambda writer, pairs: every(writer, pairs[:100])
    )
    refused(
        mistral,
        "gguf",
        tmp_path / "at" / "out",
        "llama.cpp reads .* of 24 texts as other tokens",
        type="f32",
    )


def test_killed_in_mid_export(mistral, tmp_path, here):
    out = tmp_path / "at" / "out"
    code = (
        "import importlib, sys, time; g = importlib.import_module('lorakit.exporting.targets.gguf'); g.write_model = lambda m, s, "
        "path, kind: (path.write_bytes(b'half'), print('writing', flush=True), time.sleep(60)); "
        "importlib.import_module('lorakit.exporting.round_trip').export(*sys.argv[1:])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(mistral), "gguf", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=child_environment(),
    )
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists() and left(out.parent) == [f"out{processes.part(child.pid)}"]
    exporting.export(mistral, "gguf", out)
    assert left(out.parent) == ["out"]


def test_a_model_that_does_more_than_write(mine, tmp_path):
    meta = json.loads((mine / "rows" / "meta.json").read_text())
    (mine / "rows" / "meta.json").write_text(json.dumps(meta | {"task": "classify_text"}))
    refused(
        mine,
        "gguf",
        tmp_path / "at" / "out",
        "meta.json: has changed since the run saved it",
    )
