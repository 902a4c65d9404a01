"""Long runs, many runs and odd sizes of data: memory stays flat, and no process, handle or ticket is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.runs import tiny_run, without_fresh_process

import lorakit
from lorakit.training import gpu_queue

pytestmark = pytest.mark.slow
FLAT = 1.02


def resident():
    return psutil.Process().memory_info().rss


def handles():
    return len(os.listdir("/proc/self/fd"))


def in_child(context, work, *arguments):
    """What `work` returns, measured in a process of its own."""
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_told, args=(send, work, *arguments))
    process.start()
    found = receive.recv() if receive.poll(1200) else None
    process.join(60)
    return found


def _told(pipe, work, *arguments):
    without_fresh_process()
    try:
        pipe.send(work(*arguments))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
    os._exit(0)


def long_run(base, rows, folder):
    """Resident memory after updates 100, 200, … 500."""
    from lorakit.training import loop

    seen, real = [], loop.State.__setattr__

    def watch(self, name, value):
        real(self, name, value)
        if name == "update" and value and value % 100 == 0:
            seen.append(resident())

    loop.State.__setattr__ = watch
    lorakit.finetune(tiny_run(base, rows, folder, max_updates=500, validate_every=0))
    return seen


def test_500_updates(processes, base, rows_file, tmp_path):
    seen = in_child(processes, long_run, base, rows_file, tmp_path)
    assert len(seen) == 5 and seen[-1] <= FLAT * seen[0], seen


def many_runs(base, rows, folder):
    """(memory, handles, children) after each of 30 runs in one folder."""
    seen = []
    for number in range(30):
        few = {"name": f"run {number}", "max_updates": 2, "validate_every": 0, "test_fraction": 0.0}
        lorakit.finetune(tiny_run(base, rows, folder, **few))
        seen.append((resident(), handles(), len(psutil.Process().children(recursive=True))))
    return seen


def test_30_runs_in_one_process(processes, base, rows_file, tmp_path):
    seen = in_child(processes, many_runs, base, rows_file, tmp_path)
    assert len(seen) == 30, seen
    memory, files, children = zip(*seen)
    assert memory[-1] <= FLAT * memory[9], memory
    assert files[-1] <= files[1] and children[-1] <= children[1], (files, children)
    assert len([p for p in tmp_path.glob("run */record.json")]) == 30


def turn(question, answer):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def one(base, data, folder, changes):
    """(status or the refusal, memory that it took beyond the process before)."""
    before = resident()
    try:
        found = lorakit.finetune(
            tiny_run(base, data, folder, max_updates=2, validate_every=0, **changes)
        )
        said = found.record["status"]
    except lorakit.LorakitError as error:
        said = str(error)
    return said, resident() - before


SIZES = {
    "a row of 200,000 words": ([turn("word " * 200_000, "ok then")], "done"),
    "a row of 10 MB": ([turn("x", "ab " * 3_500_000)], "done"),
    "one row": ([], "1 rows in 1 groups leave no validation row"),
}


@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes(processes, base, tmp_path, size):
    odd, expected = SIZES[size]
    usual = [turn(f"what is {i}?", f"it is {i}") for i in range(20 if odd else 1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*usual, *odd]))
    said, grown = in_child(processes, one, base, str(tmp_path / "rows.jsonl"), tmp_path, {})
    assert pytest.approx(0, abs=1.5e9) == grown
    assert re.search(expected, said), said


def test_5000_classes(processes, base, tmp_path):
    rows = "".join(f"some words number {i},label{i % 5000}\n" for i in range(15_000))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    changes = {"task": "classify_text", "max_rows": None, "max_length": 64}
    said, grown = in_child(processes, one, base, str(tmp_path / "rows.csv"), tmp_path, changes)
    assert said == "done" and grown < 1.5e9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_is_left_of_a_run_that_was_ended(base, rows_file, tmp_path, monkeypatch, number):
    """By Ctrl-C or with its parent: no process, no ticket, no half-written file, and the next start goes on."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    tiny_run(base, rows_file, tmp_path, max_updates=400, checkpoint_every=2).write(
        tmp_path / "run.yaml"
    )
    command = [sys.executable, "-m", "lorakit.cli", "train", str(tmp_path / "run.yaml"), "--queue"]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    history = tmp_path / "run/history.jsonl"
    for _ in range(1200):
        if (history.exists() and len(history.read_bytes()) > 500) or child.poll() is not None:
            break
        time.sleep(0.25)
    assert child.poll() is None
    below = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(number)
    child.wait(120)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    folder = lorakit.Folder(tmp_path / "run")
    assert folder.status == ("stopped" if number == signal.SIGINT else "interrupted")
    assert gpu_queue.waiting(tmp_path / "cache/queue") == [] and not folder.busy
    assert [p for p in Path(tmp_path / "cache").rglob("*.ticket*")] == []
    assert [p for p in (tmp_path / "run").rglob("*.part*") if number == signal.SIGINT] == []
