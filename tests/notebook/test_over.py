"""A notebook over a table of parameters, and the queue of turns on the cards."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.paths import ROOT
from helpers.runs import tiny_run

import lorakit
from lorakit.cli import main
from lorakit.common.errors import LorakitError
from lorakit.notebook import grid as over
from lorakit.runs.folder import Folder
from lorakit.training import gpu_queue

pytest.importorskip("papermill")


def notebook(path, body, parameters="rank = 8\nname = 'fit'\noutput_dir = 'outputs'\n"):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    cell = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(
            cells=[cell, new_code_cell(body)],
            metadata={
                "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
            },
        ),
        path,
    )
    return path


# Writes what a run leaves, as far as a comparison looks at it, and counts how often it was executed.
BODY = """
import json, os, pathlib, time
folder = pathlib.Path(output_dir) / name
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "times.txt", "a") as file:
    file.write("x")
if rank == 3:
    raise ValueError("three is no rank")
if rank == 5 and not (folder / "cut").exists():
    (folder / "cut").write_text("")
    os.kill(os.getppid(), 9)
    time.sleep(60)
line = {"update": 1, "loss": 1 / rank, "target_tokens": 9, "seconds": 1.0}
(folder / "history.jsonl").write_text(json.dumps(line) + chr(10))
(folder / "record.json").write_text(json.dumps({"status": "done", "settings": {"rank": rank}}))
(folder / "run.yaml").write_text(f"data: x{chr(10)}rank: {rank}{chr(10)}")
"""


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return notebook(tmp_path / "fit.ipynb", BODY)


def times(found):
    return [(row.run / "times.txt").read_text() for row in found.rows]


@pytest.mark.slow
def test_each_row_once_failures_named_cuts_gone_on_from_and_one_comparison(fit, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text("rank: [2, 3, 5, 4]\n")
    assert main(["run", str(fit), "--over", str(grid), "--output-dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "4 rows, 0 done before" in said and "2 of 4 rows are done" in said
    assert "failed: rank-3-" in said and "ValueError: three is no rank" in said
    assert "its process ended with code -9" in said
    assert "rank: 2, 4" in said and "curve of fit-rank-4-" in said
    root = tmp_path / "out/fit-over"
    assert (root / "compare.png").read_bytes()[:4] == b"\x89PNG" and "rank: 2, 4" in (
        root / "compare.txt"
    ).read_text()
    assert [row["status"] for row in csv.DictReader((root / "rows.csv").open())] == [
        "done",
        "failed",
        "interrupted",
        "done",
    ]
    assert len(list(root.glob("rows/rank-2-*/fit/fit.ipynb"))) == 1

    found = over.over(fit, grid, output_dir=tmp_path / "out")
    assert times(found) == ["x", "xx", "xx", "x"]  # what is done is not done again
    assert [row.name.rpartition("-")[0] for row in found.failed] == ["rank-3"]
    assert found.comparison.settings == {"rank": [2, 5, 4]}
    fit.write_text(fit.read_text().replace("three is no rank", "no"))
    assert times(over.over(fit, grid, output_dir=tmp_path / "out")) == [
        "xx",
        "xxx",
        "xxx",
        "xx",
    ]  # another notebook


REAL = """
import lorakit
run = lorakit.Run(name=name, model=model, data=data, output_dir=output_dir, method=method, quantization=quantization,
                  max_length=128, max_updates=300, learning_rate=1e-3, precision="fp32", validate_every=0,
                  checkpoint_every=5, max_new_tokens=4)
print(lorakit.launch(run).watch().result()["loss"])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_trainings_of_which_one_fails_and_all_are_cut(base, rows_file, tmp_path, monkeypatch):
    """Two by two, of which full fine-tuning of a four-bit base cannot be; `kill -9` of everything amid the second."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fit = notebook(
        tmp_path / "real.ipynb",
        REAL,
        f"""name = 'fit'
model = {base!r}
data = {rows_file!r}
method = 'lora'
quantization = 'none'
output_dir = 'outputs'
""",
    )
    (tmp_path / "grid.yaml").write_text("method: [lora, full]\nquantization: [none, nf4]\n")
    command = [
        sys.executable,
        "-m",
        "lorakit.cli",
        "run",
        str(fit),
        "--over",
        str(tmp_path / "grid.yaml"),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    root = tmp_path / "out/real-over"
    with open(tmp_path / "first.log", "wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def lines(method, quantization):
        found = list(root.glob(f"runs/fit-method-{method}-quantization-{quantization}-*"))
        return [u["update"] for u in Folder(found[0]).history()[0]] if found else []

    until(lambda: len(lines("lora", "nf4")) > 20 or first.poll() is not None, 600)
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            process.kill()
    assert first.wait() == -signal.SIGKILL and 20 < len(lines("lora", "nf4")) < 300
    until(lambda: not gpu_queue.busy())
    log = next(root.glob("runs/fit-method-lora-quantization-none-*/log.txt")).read_text()

    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "4 rows, 1 done before" in done.stdout and "3 of 4 rows are done" in done.stdout
    assert (
        "failed: method-full-quantization-nf4-" in done.stdout
        and "quantization='nf4' contradict" in done.stdout
    )
    assert [len(lines(*row)) for row in (("lora", "none"), ("lora", "nf4"), ("full", "none"))] == [
        300
    ] * 3
    assert lines("lora", "nf4") == list(
        range(1, 301)
    )  # gone on with, without a gap or a repetition
    assert next(root.glob("runs/fit-method-lora-quantization-none-*/log.txt")).read_text() == log
    assert [row["status"] for row in csv.DictReader((root / "rows.csv").open())] == ["done"] * 3 + [
        "failed"
    ]
    assert (root / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_tables(tmp_path):
    def read(content, name="t.yaml"):
        (tmp_path / name).write_text(content)
        return over.table(tmp_path / name)

    assert read("rank: [4, 8]\nseed: [0, 1]\nmodel: tiny") == [
        {"rank": r, "seed": s, "model": "tiny"} for r in (4, 8) for s in (0, 1)
    ]
    assert read("- {rank: 4}\n- {rank: 8, seed: 1}") == [{"rank": 4}, {"rank": 8, "seed": 1}]
    assert read("rank,seed\n4,\n8,1\n", "t.csv") == [{"rank": "4"}, {"rank": "8", "seed": "1"}]
    for content, name in (
        ("3", "t.yaml"),
        ("", "t.yaml"),
        ("[]", "t.yaml"),
        ("[1]", "t.yaml"),
        ("a: [", "t.yaml"),
        ("rank\n", "t.csv"),
        ("rank: []", "t.yaml"),
        ("rank\n4,5\n", "t.csv"),
    ):
        with pytest.raises(LorakitError, match=name):
            read(content, name)
    with pytest.raises(
        LorakitError, match=r"none.yaml: no such file; write 'rank: \[4, 16\]' there"
    ):
        over.table(tmp_path / "none.yaml")


def test_what_does_not_fit_is_refused_before_anything_runs(fit, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("rnak: [2]")
    with pytest.raises(LorakitError, match="has no parameter 'rnak'; did you mean 'rank'"):
        over.over(fit, grid, output_dir=tmp_path / "out")
    bare = notebook(tmp_path / "bare.ipynb", "pass", "rank = 1\n")
    grid.write_text("rank: [2]")
    with pytest.raises(LorakitError, match="has no parameter output_dir"):
        over.over(bare, grid, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_rows_are_folders():
    assert over.slug({"model": "../../x y", "rank": 4}) == over.slug(
        {"model": "../../x y", "rank": 4}
    )
    for values in (
        {"model": "../../x y"},
        {"data": "a" * 300},
        {"a": "\0"},
        {"note": "<b>"},
        {"a": [1, {"b": 2}]},
    ):
        assert over.slug(values).replace("-", "").replace("_", "").replace(".", "").isalnum()
        assert len(over.slug(values)) < 80
    assert over.slug({"a": "x/y"}) != over.slug({"a": "x-y"})


# Turns

WAIT = """
import sys, time
from pathlib import Path
from lorakit.training import gpu_queue
with gpu_queue.turn(sys.argv[1], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[2])) as cards:
    print(*cards, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def take(tmp_path):
    """Starts a process that waits for its turn and keeps it."""
    children = []

    def start(name, slots=1, wanted=1):
        child = subprocess.Popen(
            [sys.executable, "-c", WAIT, name, str(tmp_path), str(slots), str(wanted)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        children.append(child)
        until(
            lambda: (
                child.poll() is not None
                or name in [w.what for w in gpu_queue.waiting(tmp_path)]
                or len(gpu_queue.busy(tmp_path)) >= sum(c.poll() is None for c in children)
            )
        )
        return child

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.communicate()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_first_come_first_served_and_a_crash_frees_the_card(take, tmp_path):
    first = take("first")
    assert first.stdout.readline() == "0\n"
    second, third = take("second"), take("third")
    assert [(w.what, w.pid) for w in gpu_queue.waiting(tmp_path)] == [
        ("second", second.pid),
        ("third", third.pid),
    ]
    assert gpu_queue.busy(tmp_path) == [0]
    second.kill()  # in the queue
    second.wait()
    assert [w.what for w in gpu_queue.waiting(tmp_path)] == ["third"]
    fourth = take("fourth")
    first.send_signal(signal.SIGKILL)  # at work
    assert third.stdout.readline() == "0\n"
    until(lambda: [w.what for w in gpu_queue.waiting(tmp_path)] == ["fourth"])
    third.kill()
    assert fourth.stdout.readline() == "0\n"
    fourth.kill()
    fourth.wait()
    until(lambda: gpu_queue.busy(tmp_path) == [])
    assert not list(tmp_path.glob("*.ticket"))


def test_two_cards_and_one_that_wants_both(take, tmp_path):
    one = take("one", 2)
    assert one.stdout.readline() == "0\n"
    both, late = take("both", 2, 2), take("late", 2)
    time.sleep(3 * gpu_queue.LOOK)
    assert [w.what for w in gpu_queue.waiting(tmp_path)] == ["both", "late"]  # nobody overtakes
    one.kill()
    assert both.stdout.readline() == "0 1\n"
    both.kill()
    assert late.stdout.readline() == "0\n"


def test_a_ticket_that_is_taken_away(take, tmp_path):
    assert take("first").stdout.readline() == "0\n"
    second = take("second")
    gpu_queue.waiting(tmp_path)[0].ticket.unlink()
    assert "second: was called off while it waited" in second.communicate(timeout=60)[1]


def test_cards_are_counted_among_those_that_were_visible():
    assert gpu_queue.seen([0, 1], None) == "0,1"
    assert gpu_queue.seen([1], "2,5") == "5"
    assert gpu_queue.seen([1], "GPU-a,GPU-b") == "GPU-b"


@pytest.mark.slow
def test_a_run_waits_its_turn_and_is_attached_to(base, rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = tiny_run(base, rows_file, tmp_path / "runs", max_updates=2)
    with gpu_queue.on_cards("somebody else"):
        job = lorakit.launch(run, queued=True)
        again = lorakit.launch(run, queued=True)
        assert again._child is None and (again.status, again.running) == ("queued", True)
        assert (job.status, job.running, job.queued.pid) == ("queued", True, job._child.pid)
        other = lorakit.launch(run.with_(name="other"), queued=True)
        assert [w.what for w in gpu_queue.waiting()] == [
            str(j.folder.path.resolve()) for j in (job, other)
        ]
        other.stop()
        assert not other.running and other.status == "interrupted"
        assert not (run.folder / "history.jsonl").exists()
    assert job.watch(every=0.2).status == "done"
    assert (
        gpu_queue.busy() == []
        and json.loads((run.folder / "record.json").read_text())["updates"] == 2
    )
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
