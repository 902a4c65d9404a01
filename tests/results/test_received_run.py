"""A run that somebody else made or edited: what is not its own is refused in a sentence, never read or followed."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from helpers.pictures import trained
from PIL import Image

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.models import base_model, identity
from lorakit.results.open_run import open_run

WEIGHTS = "adapter/adapter_model.safetensors"


def changed(path):
    """The content of a file with one bit changed, as long as before."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 8
    return bytes(content)


def refused(folder, words):
    with pytest.raises(LorakitError, match=words) as found:
        open_run(folder.path)
    assert found.value.where or found.value.cure or "record.json" in str(found.value)


def test_a_link_whose_target_bears_the_recorded_hash_as_its_name_is_read_all_the_same(copied):
    path = copied / WEIGHTS
    recorded = copied.record["files"][WEIGHTS]
    other = copied / recorded
    other.write_bytes(changed(path))
    path.unlink()
    path.symlink_to(other)
    refused(copied, "has changed since the run saved it")


def test_a_finished_run_whose_adapter_changed_is_not_called_done_again(copied):
    path = copied / WEIGHTS
    content = changed(path)
    path.unlink()
    path.write_bytes(content)
    run = lorakit.Run.read(
        copied.settings, name=copied.path.name, output_dir=str(copied.path.parent)
    )
    with pytest.raises(LorakitError, match="has changed since the run saved it"):
        lorakit.finetune(run)
    assert copied.status == "done"


def test_the_hub_s_own_cache_is_taken_at_its_word(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for place in ("hub", "elsewhere"):
        blob = tmp_path / place / "models--a--b" / "blobs" / ("f" * 64)
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"x")
    assert identity.file_sha256(tmp_path / "hub/models--a--b/blobs" / ("f" * 64)) == "f" * 64
    assert identity.file_sha256(blob) == hashlib.sha256(b"x").hexdigest()


def test_a_file_rewritten_under_its_old_times_is_noticed(copied):
    open_run(copied.path)  # its hashes are remembered now
    path = copied / WEIGHTS
    before, content = path.stat(), changed(path)
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(copied, "has changed since the run saved it")


@pytest.mark.parametrize(
    "name",
    ["added_tokens.json", "additional_chat_templates/default.jinja", "adapter_model.bin", "config.json"],
)  # fmt: skip
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_the_run_did_not_save_is_refused(copied, tmp_path, name, linked):
    path = copied / "adapter" / name
    if linked:
        top = copied / "adapter" / name.split("/")[0]
        (tmp_path / "other").mkdir()
        top.symlink_to(tmp_path / "other")
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    refused(copied, "was not saved by the run")


def test_notes_of_people_may_lie_beside_it(copied):
    for name in ("NOTES.md", ".DS_Store"):
        (copied / "adapter" / name).write_text("mine")
    assert open_run(copied.path).saved == copied / "adapter"


@pytest.mark.parametrize(
    "edited",
    [
        {"files": []}, {"files": "x"}, {"base": "x"}, {"base": [1]}, {"base": {"path": 5}},
        {"base": {"relative": [1]}}, {"base": {"weights": 5}}, {"base_sha256": 5}, {"settings": None},
        {"status": ["done"]}, {"format": "x"},
    ],
)  # fmt: skip
def test_a_record_edited_by_hand_is_damaged_and_no_traceback(copied, edited):
    path = copied / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edited))
    refused(copied, "record.json: is damaged")


@pytest.mark.parametrize("without", [["files"], ["files", "format"], ["files", "base"]])
def test_a_record_of_today_without_hashes_is_no_older_run(copied, without):
    record = {k: v for k, v in copied.record.items() if k not in without}
    (copied / "record.json").write_text(json.dumps(record))
    refused(copied, "lacks the hashes of the saved files")


@pytest.mark.parametrize("name, value", [("precision", "bf16"), ("quantization", "int8")])
def test_an_edited_setting_that_bears_on_answers_is_said(copied, name, value):
    was = copied.record["trained_with"][name]
    assert was != value and open_run(copied.path).notes == ()
    run = lorakit.Run.read(copied.settings)
    run.with_(**{name: value}).write(copied.settings)
    (note,) = open_run(copied.path).notes
    assert f"run.yaml has {name}: {value}, the run was trained with {was}" in note


def test_an_older_run_says_that_its_files_could_not_be_compared(copied):
    record = {k: v for k, v in copied.record.items() if k not in ("files", "base", "format")}
    (copied / "record.json").write_text(json.dumps(record))
    assert any("no hashes of its saved files" in note for note in open_run(copied.path).notes)


def test_pictures_are_read_as_the_run_was_trained_whatever_the_base_says_now(
    made, leaves, tmp_path, monkeypatch
):
    monkeypatch.setattr("lorakit.training.proof.repeated", lambda *_: {})
    base = shutil.copytree(made("vit-base"), tmp_path / "base")
    run = trained("leaves", str(base), leaves, tmp_path, max_updates=2).path
    picture = Image.open(f"{leaves}/rust/0.png").convert("RGB")
    before = open_run(run).engine().processor(picture)["pixel_values"]
    settings = base / "preprocessor_config.json"
    content = json.loads(settings.read_text()) | {"image_mean": [0.1] * 3, "image_std": [0.9] * 3}
    settings.write_text(json.dumps(content))
    after = open_run(run).engine().processor(picture)["pixel_values"]
    assert np.array_equal(before, after)


def test_a_base_that_says_what_it_was_made_of_is_known_by_its_weights(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    plain = identity.base(str(folder))
    base_model.note_origin(folder, {"base": ["a", "b"]})
    assert identity.base(str(folder)) == plain
