"""A cut run loses nothing: killed, stopped, out of disk or out of time, it ends as if nothing had happened."""

import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import child, evidence, finetune
from safetensors.numpy import load_file

import lorakit
from lorakit.common import processes
from lorakit.runs.folder import Folder, read_lines
from lorakit.training import checkpoint


def contents(folder):
    """Every file of a run but its lock."""
    return {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file() and p.name != ".lock"}


# Killed


def begin(processes, run, *more):
    process = processes.Process(target=child, args=(run.given(), *more))
    process.start()
    return process


@pytest.fixture(scope="module")
def uncut(processes, tmp_path_factory):
    """(run) -> (evidence of it when nothing cuts it, its seconds)."""
    known = {}

    def of(run):
        key = run.optimizer, run.rank
        for _ in range(0 if key in known else 2):  # the second is as warm as those to come
            whole = run.with_(output_dir=str(tmp_path_factory.mktemp("uncut")))
            start = time.monotonic()
            process = begin(processes, whole)
            process.join()
            assert process.exitcode == 0, (Path(whole.output_dir) / "child.txt").read_text()
            assert key not in known or known[key][0] == evidence(Folder(whole.folder))
            known[key] = evidence(Folder(whole.folder)), time.monotonic() - start
        return known[key]

    return of


@pytest.mark.slow
def test_an_uncut_run_has_a_history_without_gap_or_repetition(uncut, run):
    expected, _ = uncut(run)
    updates = [x["update"] for x in expected["history"] if "loss" in x]
    validations = [x["update"] for x in expected["history"] if "validation_loss" in x]
    assert (updates, validations) == (list(range(1, 13)), [3, 6, 9, 12])
    assert expected["status"] == "done"


def survives(processes, uncut, run, delay):
    """Kills a fresh run after `delay` seconds, starts it again, compares. Returns where the kill fell."""
    expected, _ = uncut(run)
    folder = Folder(run.folder)
    process = begin(processes, run)
    time.sleep(delay)
    process.kill()
    process.join()
    updates = len(folder.history()[0])
    if process.exitcode == 0:
        return "after its end"
    place = (
        "before any record"
        if not (folder / "record.json").exists()
        else "before-scoring"
        if not (folder / "history.jsonl").exists()
        else f"training, after update {updates}"
        if updates < 12
        else "after-scoring"
    )
    assert folder.record["status"] in ("queued", "interrupted", "done")
    again = begin(processes, run)
    again.join()
    assert again.exitcode == 0, (Path(run.output_dir) / "child.txt").read_text()
    assert evidence(folder) == expected, place
    assert not list(folder.path.rglob("*.part*"))
    return place


def kills(processes, uncut, run, number, seed):
    _, seconds = uncut(run)
    rng, places = random.Random(seed), []
    for k in range(number):
        # One kill in each of `number` equal parts of the duration.
        delay = seconds * (k + rng.random()) / number
        places.append(survives(processes, uncut, run.with_(name=f"cut{k}"), delay))
    print("\n".join(places))
    return places


@pytest.mark.slow
def test_three_kills(processes, uncut, run):
    places = kills(processes, uncut, run, 3, seed=1)
    assert any(place != "after its end" for place in places)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_twenty_kills(processes, uncut, run, optimizer):
    places = kills(processes, uncut, run.with_(optimizer=optimizer, rank=64), 20, seed=2)
    assert sum(place != "after its end" for place in places) >= 15
    assert len({place.split(",")[0] for place in places}) >= 3


POINTS = {
    "the rows are encoded, nothing is recorded": ("lorakit.tasks.rows:write", 1),
    "half of the rows are written": ("datasets:Dataset.save_to_disk", 2),
    "the base was asked, its answers not kept": ("lorakit.results.evaluate:Outcome.write", 1),
    "before the first update": ("lorakit.runs.folder:Folder.rewind", 1),
    "an update is done, its line is not written": ("lorakit.runs.folder:Folder.append", 5),
    "the best is kept, the last is not": ("lorakit.training.checkpoint:write", 7),
    "amid a checkpoint": ("lorakit.training.checkpoint:os.fsync", 4),
    "training is over, nothing is scored": ("lorakit.training.proof:unchanged", 1),
    "the adapter is half written": ("transformers:PreTrainedTokenizerBase.save_pretrained", 1),
    "the scores are written, the answers are not": ("lorakit.training.finetune:write_lines", 2),
    "done is said, the report is missing": ("lorakit.results.report:write", 1),
    "the record of the start is there, no row yet": ("lorakit.tasks.dataset:Prepared.write", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=[] if number in (1, 6, 8) else [pytest.mark.slow])
        for number, place in enumerate(POINTS)
    ],
)
def test_a_kill_at_a_delicate_place(processes, uncut, run, place):
    expected, _ = uncut(run)
    shutil.rmtree(os.environ["LORAKIT_CACHE"])  # rows are encoded again
    folder, killed = Folder(run.folder), begin(processes, run, *POINTS[place])
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (Path(run.output_dir) / "child.txt").read_text()
    again = begin(processes, run)
    again.join()
    assert again.exitcode == 0, (Path(run.output_dir) / "child.txt").read_text()
    assert evidence(folder) == expected
    assert (folder / "report.html").exists()
    assert not list(folder.path.rglob("*.part*"))


# Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run) -> evidence of it, uncut, in this process."""
    kept = {}

    def of(run):
        key = run.max_updates
        if key not in kept:
            kept[key] = evidence(
                finetune(run.with_(output_dir=str(tmp_path_factory.mktemp("whole"))))
            )
        return kept[key]

    return of


def after_line(monkeypatch, update, act):
    """Calls `act` when the line of an update has been written."""
    real = Folder.append

    def append(self, line):
        real(self, line)
        if line.get("update") == update and "loss" in line:
            act()

    monkeypatch.setattr(Folder, "append", append)


@pytest.fixture
def stopped(quick, run, monkeypatch):
    """A run that was stopped after update 6."""
    with monkeypatch.context() as patch:
        after_line(patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
        finetune(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(quick, whole, run, monkeypatch, number):
    expected = whole(run)
    with monkeypatch.context() as patch:
        after_line(patch, 6, lambda: signal.raise_signal(number))
        handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
        folder = finetune(run)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert folder.record["status"] == "stopped"
    assert folder.record["error"] == "stopped on request after update 6; start it again to resume"
    assert len(folder.history()[0]) == 6
    assert checkpoint.read(folder / "checkpoint/last.safetensors")[1]["state"]["update"] == 6
    assert not (folder / "scores.json").exists()
    assert evidence(finetune(run)) == expected
    assert folder.record["error"] is None


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(quick, whole, run, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    given = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it
    try:
        with monkeypatch.context() as patch:
            after_line(patch, 6, twice)
            with pytest.raises(KeyboardInterrupt):
                finetune(run)
    finally:
        signal.signal(signal.SIGINT, given)
    folder = Folder(run.folder)
    assert folder.record["status"] == "interrupted"
    assert (folder / "report.html").exists()
    assert evidence(finetune(run)) == whole(run)


@pytest.mark.slow
def test_an_interrupt_outside_of_training(quick, whole, run, monkeypatch):
    from lorakit.results import evaluate

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(run)
    assert Folder(run.folder).record["status"] == "interrupted"
    assert evidence(finetune(run)) == whole(run)


@pytest.mark.slow
def test_out_of_time(quick, whole, run):
    """A limit that is over after one update: each start does one more, the end is the same."""
    run = run.with_(max_updates=3)
    hurried = run.with_(max_minutes=1e-9)
    folder = finetune(hurried)
    assert folder.record["status"] == "stopped"
    assert (
        folder.record["error"]
        == "max_minutes=1e-09 is over after update 1; start it again to resume"
    )
    assert len(folder.history()[0]) == 1
    assert finetune(hurried).record["status"] == "stopped"
    assert evidence(finetune(hurried)) == whole(run)  # the last update ends it, in time or not


def test_a_finished_run_is_left_alone(quick, run, monkeypatch):
    folder = finetune(run)
    before = {
        p: b
        for p, b in contents(folder).items()
        if p.name not in ("report.html", "report.md", "loss.png")
    }
    monkeypatch.setattr("lorakit.engines.torch.load", None)
    assert finetune(run).record["status"] == "done"
    after = contents(folder)
    assert {p: after[p] for p in before} == before
    assert after.keys() - before.keys() == {
        folder / n for n in ("report.html", "report.md", "loss.png")
    }


@pytest.mark.slow
def test_settings_half_written(stopped, whole, monkeypatch):
    real = Path.write_text

    def half(path, text, **more):
        if path.name.startswith("run.yaml"):
            real(path, text[:40], **more)
            raise KeyboardInterrupt
        return real(path, text, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped)
    assert evidence(finetune(stopped)) == whole(stopped)


# Something else changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 2e-3}, r"learning_rate: 0\.001 there, 0\.002 now"),
        ({"rank": 8, "seed": 1}, r"rank: 16 there, 8 now; seed: 0 there, 1 now"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_lost(stopped, changes, words):
    folder = Folder(stopped.folder)
    before = contents(folder)
    with pytest.raises(lorakit.LorakitError, match=words) as error:
        finetune(stopped.with_(**changes))
    assert "another name" in str(error.value)
    assert contents(folder) == before
    assert folder.record["status"] == "stopped"


def test_other_data_are_refused(stopped, tmp_path, rows_file):
    path = tmp_path / "rows.jsonl"
    path.write_text(Path(rows_file).read_text())
    run = stopped.with_(data=str(path), name="other", max_minutes=1e-9)
    folder = finetune(run)
    with open(path, "a") as file:
        file.write(json.dumps({"prompt": "one more row?", "completion": "no"}) + "\n")
    before = contents(folder)
    with pytest.raises(
        lorakit.LorakitError, match=r"the content of the data: .*rows\.jsonl has changed since"
    ):
        finetune(run)
    assert contents(folder) == before


def test_another_base_is_refused(stopped, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(stopped.model).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(stopped.model)
    model.save_pretrained(tmp_path / "base")
    run = stopped.with_(model=str(tmp_path / "base"), name="other", max_minutes=1e-9)
    finetune(run)
    model.model.norm.weight.data += 1
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(lorakit.LorakitError, match="the weights of the base: .* has changed since"):
        finetune(run)


def test_a_checkpoint_without_a_record_is_refused(stopped):
    os.unlink(stopped.folder / "record.json")
    with pytest.raises(lorakit.LorakitError, match=r"record\.json does not say of which settings"):
        finetune(stopped)


@pytest.mark.slow
def test_the_written_settings_continue_the_run(whole, stopped):
    """What `auto` became is no difference, in either order."""
    run = lorakit.Run.read(stopped.folder / "run.yaml")
    assert (run.packing, run.engine, stopped.packing, stopped.engine) == (
        True,
        "torch",
        "auto",
        "auto",
    )
    assert finetune(run.with_(max_minutes=1e-9)).record["updates"] == 7
    assert evidence(finetune(stopped)) == whole(stopped)


@pytest.mark.slow
def test_more_updates_go_on_and_fewer_do_no_harm(stopped):
    folder = finetune(stopped.with_(max_updates=14))
    assert [u["update"] for u in folder.history()[0]] == list(range(1, 15))
    assert (folder.record["status"], folder.record["updates"]) == ("done", 14)
    adapter = (folder / "adapter/adapter_model.safetensors").read_bytes()
    folder = finetune(stopped.with_(max_updates=16))  # also when it was done
    assert (folder.record["status"], len(folder.history()[0])) == ("done", 16)
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() != adapter
    before = evidence(folder)
    assert evidence(finetune(stopped.with_(max_updates=5))) == before


def test_fewer_updates_end_a_cut_run(stopped):
    folder = finetune(stopped.with_(max_updates=4))
    assert folder.record["status"] == "done"
    assert [u["update"] for u in folder.history()[0]] == [1, 2, 3, 4, 5, 6]
    assert folder.scores["loss"]["rows"] == 8


@pytest.mark.slow
def test_epochs_instead_of_updates_go_on(quick, run):
    """64 training rows, 8 an update: two epochs are 16 updates."""
    folder = finetune(run.with_(epochs=2))
    assert (folder.record["status"], folder.record["updates"]) == ("done", 12)
    folder = finetune(run.with_(epochs=2, max_updates=None))
    assert (folder.record["status"], folder.record["updates"]) == ("done", 16)


def test_nothing_of_an_abandoned_start_is_taken_over(quick, run, monkeypatch):
    """Killed before the first checkpoint, begun anew with another rank: the best of then is not this run's."""
    with monkeypatch.context() as patch:
        after_line(patch, 4, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune(run.with_(checkpoint_every=100))
    folder = Folder(run.folder)
    assert (folder / "checkpoint/best.safetensors").exists()
    assert not (folder / "checkpoint/last.safetensors").exists()
    folder = finetune(run.with_(rank=8, validate_every=0))
    assert (folder.record["status"], folder.record["adapter_from_update"]) == ("done", 12)


# The disk


@pytest.fixture
def small_files(monkeypatch):
    """(bytes) -> no file of this process grows beyond: a real short write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "step": np.asarray(3.0, dtype=np.float32),
        "b": np.arange(4, dtype=np.uint8),
        "n": np.asarray(7),
    }
    checkpoint.write(tmp_path / "x", tensors, {"best": math.inf, "words": "ü"})
    found, meta = checkpoint.read(tmp_path / "x")
    assert meta == {"best": math.inf, "words": "ü"}
    assert found.keys() == tensors.keys()
    assert all(
        np.array_equal(found[k], v) and found[k].dtype == v.dtype and found[k].shape == v.shape
        for k, v in tensors.items()
    )


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, small_files, monkeypatch):
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, {"a": np.zeros(10)}, {})
    old = path.read_bytes()
    small_files(4096)
    with pytest.raises(
        lorakit.LorakitError, match=r"could not be written: .*last\.safetensors of before is kept"
    ):
        checkpoint.write(path, {"a": np.zeros(10_000)}, {})
    small_files(resource.RLIM_INFINITY)

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(lorakit.LorakitError, match=r"No space left on device.*Free some space"):
        checkpoint.write(path, {"a": np.ones(10)}, {})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing(quick, whole, run, monkeypatch):
    real, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:  # the best of update 3, the last of 4, the best of 6: the last of 8
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(lorakit.LorakitError, match="No space left on device"):
            finetune(run)
    folder = Folder(run.folder)
    assert folder.record["status"] == "failed"
    assert "No space left" in folder.record["error"]
    assert checkpoint.read(folder / "checkpoint/last.safetensors")[1]["state"]["update"] == 4
    assert evidence(finetune(run)) == whole(run)


def test_an_adapter_that_cannot_be_written(base, tmp_path, small_files):
    from lorakit.engines.torch import load

    engine = load(
        lorakit.Run(
            model=base,
            data="-",
            engine="torch",
            precision="fp32",
            quantization="none",
            max_length=64,
            packing=False,
            gradient_checkpointing=False,
            micro_batch_size=8,
            micro_batch_tokens=4096,
        )
    )
    engine.save(tmp_path / "adapter")
    old = (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    small_files(4096)
    with pytest.raises(lorakit.LorakitError, match="adapter: could not be written"):
        engine.save(tmp_path / "adapter")
    small_files(resource.RLIM_INFINITY)
    assert (tmp_path / "adapter/adapter_model.safetensors").read_bytes() == old
    assert os.listdir(tmp_path) == ["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 100, b"half"], ids=["empty", "zeros", "cut in half"]
)
def test_a_damaged_checkpoint_is_said_to_be_one(stopped, whole, damage):
    path = stopped.folder / "checkpoint/last.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == b"half" else damage)
    with pytest.raises(
        lorakit.LorakitError, match=r"last\.safetensors: the checkpoint is damaged .*delete it"
    ):
        finetune(stopped)
    assert Folder(stopped.folder).record["status"] == "failed"
    path.unlink()
    assert evidence(finetune(stopped)) == whole(stopped)


# One folder, one writer


def test_two_runs_into_one_folder(stopped):
    folder = Folder(stopped.folder)
    before = contents(folder)
    with folder.locked():
        assert folder.busy
        with pytest.raises(
            lorakit.LorakitError, match="another run is writing here; give this one another name"
        ):
            finetune(stopped)
    assert not folder.busy
    assert contents(folder) == before


def test_a_folder_that_says_running_without_a_process_reads_interrupted(tmp_path):
    folder = Folder(tmp_path)
    assert folder.record["status"] == "queued"
    folder.note(status="running", pid=1)
    assert folder.record["status"] == "interrupted"
    with folder.locked():
        assert folder.record["status"] == "running"
    assert folder.record["status"] == "interrupted"
    folder.note(status="done")
    assert folder.record == {"status": "done", "pid": 1}


def test_readers_do_not_stand_in_the_way(tmp_path):
    """Asking whether a folder is busy takes the lock for an instant; a run that begins then must not fail."""
    folder, end = Folder(tmp_path), time.monotonic() + 1
    with folder.locked():
        pass

    def read():
        while time.monotonic() < end:
            assert folder.busy in (True, False)
            time.sleep(0.001)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    begun = 0
    while time.monotonic() < end:
        with folder.locked():
            assert folder.busy
            begun += 1
    for reader in readers:
        reader.join()
    assert begun > 3
    assert not folder.busy


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path):
    dead = 2**22 + 1  # above the largest process id of Linux
    (tmp_path / f"rows{processes.part(dead)}").mkdir()
    (tmp_path / f"rows{processes.part(dead)}" / "meta.json").write_text("{}")
    (tmp_path / f"record.json{processes.part(dead)}").write_text("half")
    (tmp_path / f"report.md{processes.part()}").write_text("being written")
    (tmp_path / "notes.part").write_text("the user's")
    with Folder(tmp_path).locked():
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == [
            "notes.part",
            f"report.md{processes.part()}",
        ]


def test_a_line_half_written_is_not_read_and_is_written_anew(tmp_path):
    folder = Folder(tmp_path)
    for update in (1, 2, 3):
        folder.append({"update": update, "loss": 1.0})
    folder.append({"update": 3, "validation_loss": 2.0})
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"update": 4, "lo')
    assert [u["update"] for u in folder.history()[0]] == [1, 2, 3]
    folder.rewind(2)
    folder.append({"update": 3, "loss": 1.5})
    assert read_lines(folder / "history.jsonl") == [
        {"update": 1, "loss": 1.0},
        {"update": 2, "loss": 1.0},
        {"update": 3, "loss": 1.5},
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_record_is_said_to_be_one(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(lorakit.LorakitError, match=r"record\.json: is damaged"):
        _ = Folder(tmp_path).record


# The best, and when to stop


@pytest.fixture
def overfitting(run):
    """The answers of the training rows are dealt at random and the rate is far too high."""
    return run.with_(
        learning_rate=2e-2,
        schedule="constant",
        validate_every=1,
        early_stopping=2,
        max_updates=40,
        max_grad_norm=None,
        dropout=0.0,
    )


def test_early_stopping_keeps_the_best(quick, overfitting):
    folder = finetune(overfitting)
    updates, validations = folder.history()
    losses = [v["validation_loss"] for v in validations]
    best = int(np.argmin(losses)) + 1
    assert len(updates) < 40
    assert len(losses) == best + 2
    assert folder.record["adapter_from_update"] == best
    kept, meta = checkpoint.read(folder / "checkpoint/best.safetensors")
    saved = load_file(folder / "adapter/adapter_model.safetensors")
    assert meta == {"update": best}
    assert {n.replace(".default", ""): v.tobytes() for n, v in kept.items()} == {
        n: v.tobytes() for n, v in saved.items()
    }
    last = checkpoint.read(folder / "checkpoint/last.safetensors")[0]
    assert any(last[f"weight/{n}"].tobytes() != v.tobytes() for n, v in kept.items())


@pytest.mark.slow
def test_a_run_cut_after_early_stopping_trains_no_further(quick, overfitting, monkeypatch):
    expected = evidence(finetune(overfitting.with_(name="whole")))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["lorakit.training.proof"], "unchanged", lambda *x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune(overfitting)
    assert evidence(finetune(overfitting)) == expected


def test_the_best_of_the_first_update_is_good_enough(quick, overfitting):
    """After one update lora_A stands where it began; the proof is about training, not about the best."""
    folder = finetune(overfitting.with_(learning_rate=1.0, max_updates=2, early_stopping=None))
    assert folder.record["adapter_from_update"] == 1
    assert folder.record["status"] == "done"


@pytest.mark.slow
def test_one_termination_said_twice_is_one(quick, whole, run, monkeypatch):
    """Slurm signals every process of a step, and torchrun passes it on to its own."""

    def twice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        after_line(patch, 6, twice)
        assert finetune(run).record["status"] == "stopped"
    assert evidence(finetune(run)) == whole(run)
