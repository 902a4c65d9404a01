"""The files of a run, and what its status is."""

import json

import pytest

from lorakit.common.errors import LorakitError
from lorakit.runs.folder import ReadOnlyRunFolder, RunFolder, write_json
from lorakit.runs.phases import TRAINING, phase
from lorakit.runs.status import Status, derive


@pytest.mark.parametrize(
    ("recorded", "seen", "status"),
    [
        (None, {"locked": False}, "queued"),
        ("running", {"locked": True}, "running"),
        ("running", {"locked": False}, "interrupted"),
        ("done", {"locked": True}, "done"),
        ("done", {"locked": True, "waiting": True}, "queued"),
        ("done", {"locked": True, "child": True}, "running"),  # of an earlier run
        (None, {"locked": True, "child": True}, "queued"),
        ("done", {"locked": False, "child": True, "exit_code": 1}, "failed"),  # was refused
        ("done", {"locked": False, "child": True, "exit_code": 0}, "done"),
        ("stopped", {"locked": False, "child": True, "exit_code": 0}, "stopped"),
        (None, {"locked": False, "child": True, "exit_code": 0}, "interrupted"),
        ("running", {"locked": False, "child": True, "exit_code": -9}, "interrupted"),
    ],
)
def test_status_is_derived_in_one_place(recorded, seen, status):
    assert derive(recorded, **seen) == status


def test_status_is_its_text():
    assert Status.DONE == "done" and json.dumps({"status": Status.DONE}) == '{"status": "done"}'
    assert f"{Status.STOPPED}" == "stopped"
    assert [s for s in Status if not s.ended] == ["queued", "running"]


def test_a_run_without_a_process_is_interrupted(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked():
        folder.note(status=Status.RUNNING)
        assert folder.status == "running"
    assert folder.status == folder.record["status"] == "interrupted"


def test_an_unknown_status_is_damage(tmp_path):
    (tmp_path / "record.json").write_text('{"status": "fine"}')
    with pytest.raises(LorakitError, match="record.json: is damaged"):
        _ = RunFolder(tmp_path).record


def test_meta_is_read_without_rows(tmp_path):
    folder = RunFolder(tmp_path)
    folder.rows.mkdir()
    meta = {"task": "chat", "stop_ids": [1], "opening": None}
    (folder.rows / "meta.json").write_text(json.dumps(meta))
    (folder.rows / "train").write_text("no Arrow table")
    assert folder.meta() == meta | {"classes": []}
    (folder.rows / "meta.json").write_text("{}")
    with pytest.raises(LorakitError, match="'task' is missing"):
        folder.meta()


def test_outcomes_lie_beside_the_rows_and_older_ones_are_found(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.outcome("before") == tmp_path / "outcomes/before.json"
    folder.rows.mkdir()
    (folder.rows / "after.json").write_text("{}")
    assert folder.outcome("after") == tmp_path / "rows/after.json"


def test_the_phase_follows_from_the_files(tmp_path):
    folder = RunFolder(tmp_path)
    assert phase(folder, 0).place == 0
    folder.note(updates_planned=4)
    assert phase(folder, 0).place == 1
    write_json(folder.outcome("before"), {})
    assert [phase(folder, n).place for n in (0, 3, 4)] == [TRAINING, TRAINING, TRAINING + 1]
    write_json(folder.outcome("after"), {})
    assert phase(folder, 4).place == TRAINING + 2
    folder.note(status="done")
    assert str(phase(folder, 4)) == "done"


def test_a_process_beside_the_first_writes_nothing(tmp_path):
    folder = ReadOnlyRunFolder(tmp_path / "run")
    with folder.locked():
        folder.note(status="running")
        folder.append({"update": 1})
        folder.rewind(0)
        folder.clear()
    assert not folder.path.exists() and not folder.writable
    assert folder.record == {"status": "queued"}


def test_a_folder_that_was_removed_is_said_to_be(tmp_path):
    folder = RunFolder(tmp_path / "gone")
    with pytest.raises(LorakitError, match="was removed while it trained") as found:
        folder.append({"update": 1, "loss": 1.0})
    assert found.value.where == str(tmp_path / "gone") and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("value", ['"x"', "[1]", "null", "{}"])
@pytest.mark.parametrize("name", ["update", "loss", "validation_loss"])
def test_a_history_without_numbers_is_named_by_its_line(name, value, tmp_path):
    line = {"update": 1, "loss": 2.5} | {name: 0}
    text = json.dumps(line).replace(f'"{name}": 0', f'"{name}": {value}')
    (tmp_path / "history.jsonl").write_text('{"update": 0, "loss": 3}\n' + text + "\n")
    with pytest.raises(LorakitError, match=f"history.jsonl:2: is damaged .'{name}' is .*no number"):
        RunFolder(tmp_path).history()


def test_a_folder_with_an_odd_name_is_read_and_written(tmp_path):
    folder = RunFolder(tmp_path / "Ü b\nc 'd\"")
    folder.path.mkdir()
    with folder.locked():
        folder.note(status="running", seconds=float("nan"))
        folder.append({"update": 1, "loss": 2.5})
        assert folder.busy and folder.status == "running"
    assert folder.status == "interrupted" and folder.history()[0] == [{"update": 1, "loss": 2.5}]


@pytest.mark.parametrize("name", ["record.json", "scores.json", "history.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(name, tmp_path):
    (tmp_path / name).mkdir()
    folder = RunFolder(tmp_path)
    read = {"record.json": lambda: folder.record, "scores.json": lambda: folder.scores}
    with pytest.raises(LorakitError, match=name):
        read.get(name, folder.history)()
