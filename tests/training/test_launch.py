"""A run in a child: files are the only channel, and nothing that happens to the parent stops it."""

import base64
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.notebook import live
from lorakit.runs.folder import Folder
from lorakit.training import checkpoint


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


PARENT = """
import json, sys, time
import lorakit
job = lorakit.launch(lorakit.Run(**json.loads(sys.argv[1])))
print(job.status, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_parent_dies_and_the_child_trains_on(base, rows_file, tmp_path, capsys):
    """Launched by a process that is killed; watched and asked for its result from this one."""
    run = tiny_run(base, rows_file, tmp_path)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, run.model_dump_json(include=run.model_fields_set)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline().strip() in ("queued", "running")
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    parent.stdout.close()
    folder = Folder(run.folder)
    assert folder.busy
    until(lambda: (folder / "record.json").exists())
    job = lorakit.attach(run.folder)
    until(lambda: "pid" in folder.record)
    assert os.getpgid(folder.record["pid"]) == folder.record["pid"]  # a group of its own
    with pytest.raises(lorakit.LorakitError, match="is running, not done"):
        job.result()
    assert job.watch(every=0.2) is job
    assert (job.status, job.running) == ("done", False)
    assert job.result() == folder.scores != {}
    shown = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    assert re.fullmatch(
        r"done · update 12 of 12 · loss \d\.\d{3} · validation \d\.\d{3} · [\d,]+ target tokens/s",
        shown[-1],
    )
    assert not any("done" in line for line in shown[:-1])
    assert "fresh process repeats" in folder.record["proof"]["reloaded"]


@pytest.mark.slow
def test_a_child_is_watched_attached_to_and_stopped(base, rows_file, tmp_path, monkeypatch, capsys):
    run = tiny_run(
        base,
        rows_file,
        tmp_path,
        max_updates=1_000_000,
        checkpoint_every=1_000_000,
        validate_every=0,
    )
    job = lorakit.launch(run)
    folder = job.folder
    until(lambda: len(folder.history()[0]) > 2)
    assert (job.status, job.running) == ("running", True)
    again = lorakit.launch(run)
    assert again.folder.path == folder.path and again._child is None  # attached, not started twice
    with pytest.raises(
        lorakit.LorakitError,
        match=r"other settings is running there \(rank\); give this one another",
    ):
        lorakit.launch(run.with_(rank=4))
    with pytest.raises(lorakit.LorakitError, match="another run is writing here"):
        lorakit.finetune(run)
    real, drawn = live.Panel.draw, []

    def draw(panel, status, last=False):
        drawn.append((status, last))
        real(panel, status, last=last)
        if len(drawn) == 3:
            raise KeyboardInterrupt  # the cell is interrupted

    monkeypatch.setattr(live.Panel, "draw", draw)
    assert job.watch(every=0.1).status == "stopped"
    assert drawn == [("running", False)] * 3 + [("stopped", True)]
    assert not job.running and not again.running
    assert "train · update" in capsys.readouterr().err
    done = len(folder.history()[0])
    assert (
        folder.record["error"]
        == f"stopped on request after update {done}; start it again to resume"
    )
    assert (folder / "checkpoint/last.safetensors").exists()
    with pytest.raises(lorakit.LorakitError, match="is stopped, not done"):
        lorakit.attach(folder.path).result()


def endless(base, rows_file, tmp_path):
    """Two processes that train until they are asked to stop."""
    return tiny_run(
        base,
        rows_file,
        tmp_path,
        processes=2,
        max_updates=1_000_000,
        checkpoint_every=1_000_000,
        validate_every=0,
    )


def nobody_is_left(tmp_path):
    return not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]


def stopped(folder):
    """The checkpoint is of the last line of the history."""
    done = len(folder.history()[0])
    assert (
        folder.record["error"]
        == f"stopped on request after update {done}; start it again to resume"
    )
    assert checkpoint.read(folder / "checkpoint/last.safetensors")[1]["state"]["update"] == done
    return folder.record["status"] == "stopped"


@pytest.mark.slow
def test_two_processes_outlive_who_launched_them_and_stop_when_asked(
    base, rows_file, tmp_path, monkeypatch, capsys
):
    """The parent is killed, another one attaches, watches and interrupts: both processes end with a checkpoint."""
    run = endless(base, rows_file, tmp_path)
    folder, parent = (
        Folder(run.folder),
        subprocess.Popen(
            [sys.executable, "-c", PARENT, run.model_dump_json(include=run.model_fields_set)],
            stdout=subprocess.DEVNULL,
        ),
    )
    until(lambda: len(folder.history()[0]) > 2)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    job, seen = lorakit.attach(run.folder), len(folder.history()[0])
    until(lambda: len(folder.history()[0]) > seen + 2)
    real, drawn = live.Panel.draw, []

    def draw(panel, status, last=False):
        drawn.append((status, last))
        real(panel, status, last=last)
        if len(drawn) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(live.Panel, "draw", draw)
    assert job.watch(every=0.1).status == "stopped" and stopped(folder)
    assert drawn == [("running", False)] * 3 + [("stopped", True)]
    assert "train · update" in capsys.readouterr().err
    each = folder.record["processes"]
    assert len({p["process"] for p in each}) == 2 and min(p["target_tokens"] for p in each) > 0
    until(lambda: nobody_is_left(tmp_path), 20)


@pytest.mark.slow
def test_two_processes_are_stopped_by_who_launched_them_and_survive_their_launcher(
    base, rows_file, tmp_path
):
    """Stopped as a job's own child; started again, they train on when torchrun's agent is killed."""
    run = endless(base, rows_file, tmp_path)
    job = lorakit.launch(run)
    folder = job.folder
    until(lambda: len(folder.history()[0]) > 2)
    assert (job.status, lorakit.launch(run)._child) == ("running", None)
    assert job.stop().status == "stopped" and stopped(folder)
    assert job._child.returncode == 0 and "Traceback" not in job.log(1000)
    until(lambda: nobody_is_left(tmp_path), 20)
    job, seen = lorakit.launch(run), len(folder.history()[0])
    until(lambda: len(folder.history()[0]) > seen + 2)
    job._child.kill()
    job._child.wait()
    seen = len(folder.history()[0])
    until(lambda: len(folder.history()[0]) > seen + 2)
    assert lorakit.attach(folder.path).stop().status == "stopped" and stopped(folder)
    assert [u["update"] for u in folder.history()[0]] == list(
        range(1, len(folder.history()[0]) + 1)
    )
    until(lambda: nobody_is_left(tmp_path), 20)


@pytest.mark.slow
def test_a_launch_of_two_is_stopped_before_it_trains(base, rows_file, tmp_path):
    job = lorakit.launch(endless(base, rows_file, tmp_path))
    assert job.stop().status == "interrupted"
    assert not job.running and job.folder.history() == ([], [])
    until(lambda: nobody_is_left(tmp_path), 20)


@pytest.mark.slow
def test_a_kernel_is_killed_and_a_new_one_goes_on_watching(base, rows_file, tmp_path):
    """In Jupyter kernels: the first launches and is killed, the second attaches; its output holds the whole curve."""
    from jupyter_client.manager import start_new_kernel

    run = tiny_run(base, rows_file, tmp_path, processes=2, max_updates=300, validate_every=100)
    folder = Folder(run.folder)
    given = run.model_dump_json(include=run.model_fields_set)
    manager, client = start_new_kernel(cwd=tmp_path)
    client.execute(
        f"import json, lorakit; job = lorakit.launch(lorakit.Run(**json.loads({given!r}))); job.watch(0.2)"
    )
    until(lambda: len(folder.history()[0]) > 5)
    client.stop_channels()
    manager.shutdown_kernel(now=True)  # SIGKILL
    seen = len(folder.history()[0])
    assert folder.record["status"] == "running" and seen < 300
    manager, client = start_new_kernel(cwd=tmp_path)
    shown = []
    try:
        reply = client.execute_interactive(
            f"import lorakit; lorakit.attach({str(folder.path)!r}).watch(0.2).status",
            timeout=200,
            output_hook=shown.append,
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply
    assert folder.record["status"] == "done" and len(folder.history()[0]) == 300
    contents = [m["content"]["data"] for m in shown if "data" in m["content"]]
    pictures = [base64.b64decode(c["image/png"]) for c in contents if "image/png" in c]
    assert len(pictures) > 1 and pictures[-1] == (folder / "loss.png").read_bytes()
    lines = [c["text/plain"] for c in contents if "update" in c.get("text/plain", "")]
    assert "train · update " in lines[0]
    assert lines[-1].startswith("done · update 300 of 300 · loss ")
    until(lambda: nobody_is_left(tmp_path), 20)


@pytest.mark.parametrize(
    ("row", "why", "recorded"),
    [(None, "no such file", False), ('{"prompt": "a?", "completion": ""}', "is empty", True)],
    ids=["no file", "no usable row"],
)
def test_a_child_that_fails_says_why(base, tmp_path, row, why, recorded):
    """What is refused before the run begins leaves no record; what fails after that is recorded."""
    path = tmp_path / "rows.jsonl"
    if row:
        path.write_text(row + "\n")
    job = lorakit.launch(tiny_run(base, str(path), tmp_path))
    with pytest.raises(lorakit.LorakitError, match=rf"(?s)failed.*rows\.jsonl.*{why}"):
        job.watch(every=0.1)
    assert job.status == "failed" and (job.folder / "record.json").exists() is recorded
    if recorded:
        assert lorakit.attach(job.folder.path).status == "failed"
    assert "Traceback" not in job.log(100)
    with pytest.raises(lorakit.LorakitError, match=rf"(?s)is failed, not done.*{why}"):
        job.result()


def test_a_refused_restart_fails_and_leaves_the_old_run_as_it_was(copied):
    run = lorakit.Run.read(copied / "run.yaml", output_dir=str(copied.path.parent), name="copied")
    before = {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()}
    job = lorakit.launch(run.with_(learning_rate=2e-3))
    until(lambda: not job.running)
    assert job.status == "failed"
    assert "learning_rate: 0.001 there, 0.002 now" in job.log()
    with pytest.raises(
        lorakit.LorakitError, match=r"(?s)is failed, not done.*learning_rate: 0\.001 there"
    ):
        job.result()
    after = {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()}
    assert {p: after[p] for p in before} == before
    assert {p.name for p in after.keys() - before.keys()} <= {"log.txt", "asked.json", ".lock"}
    old = lorakit.attach(copied.path)
    assert (old.status, old.result()) == ("done", copied.scores)


# Without a child


@pytest.mark.parametrize(
    ("noted", "code", "expected"),
    [
        (None, None, "queued"),
        ("done", None, "running"),
        ("failed", None, "running"),
        ("running", None, "running"),
        ("done", 0, "done"),
        ("stopped", 0, "stopped"),
        (None, 1, "failed"),
        ("done", 1, "failed"),
        (None, -9, "interrupted"),
        ("running", -9, "interrupted"),
        ("stopped", -15, "interrupted"),
    ],
)
def test_what_a_job_is(tmp_path, noted, code, expected):
    """The folder may still say what an older run was."""
    if noted:
        Folder(tmp_path).note(status=noted)
    assert lorakit.Job(tmp_path, SimpleNamespace(poll=lambda: code)).status == expected


def test_nobody_else_is_stopped(tmp_path):
    """A run that begins anew has not yet replaced the process id that its record holds from before."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = Folder(tmp_path)
        folder.note(status="stopped", pid=bystander.pid)
        with folder.locked():
            lorakit.Job(tmp_path).stop(seconds=0.3)
            assert bystander.poll() is None
            folder.note(status="running", pid=2**22 + 1)  # gone
            lorakit.Job(tmp_path).stop(seconds=0.3)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_run_of_another_machine_is_not_stopped_by_its_number_here(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = Folder(tmp_path)
        folder.note(status="running", pid=bystander.pid, host="00000000")
        with folder.locked(), pytest.raises(lorakit.LorakitError, match="another machine"):
            lorakit.Job(tmp_path).stop(seconds=0.3)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_attaching_needs_a_run(tmp_path):
    with pytest.raises(lorakit.LorakitError, match="no run here"):
        lorakit.attach(tmp_path)


def test_a_folder_that_cannot_be_made(base, rows_file, tmp_path):
    (tmp_path / "file").write_text("")
    run = tiny_run(base, rows_file, tmp_path / "file")
    for start in (lorakit.launch, lorakit.finetune):
        with pytest.raises(
            lorakit.LorakitError, match=r"cannot be written \(.*; name another output_dir"
        ):
            start(run)


def test_the_log_is_read_with_its_progress_bars(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"one\ntraining: 1%\rtraining: 2%\n\nbad \xff byte\n")
    assert lorakit.Job(tmp_path).log(3) == "training: 1%\ntraining: 2%\nbad \ufffd byte"
    assert lorakit.Job(tmp_path / "none").log() == ""


def test_the_panel_in_a_notebook_draws_in_place(tmp_path, monkeypatch):
    folder, shown = Folder(tmp_path), []

    def display(content, **more):
        shown.append(("new", content))
        return SimpleNamespace(update=lambda content, **more: shown.append(("again", content)))

    monkeypatch.setattr(live, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    panel = live.Panel(folder)
    panel.draw("queued")
    for update in (1, 2):
        folder.append({"update": update, "loss": 2.0, "target_tokens": 50, "seconds": 0.5})
        panel.draw("running")
    panel.draw("running")
    folder.append({"update": 2, "validation_loss": 1.5})
    folder.note(status="done", updates_planned=2)
    panel.draw("done", last=True)
    texts = [c["text/plain"] for _, c in shown if isinstance(c, dict)]
    assert texts == [
        "queued",
        "3/5 train · update 1 · loss 2.000 · 100 target tokens/s",
        "3/5 train · update 2 · loss 2.000 · 100 target tokens/s",
        "3/5 train · update 2 · loss 2.000 · 100 target tokens/s",
        "done · update 2 of 2 · loss 2.000 · validation 1.500 · 100 target tokens/s",
    ]
    assert [kind for kind, c in shown if not isinstance(c, dict)] == [
        "new",
        "again",
    ]  # rarely, and at the end
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
