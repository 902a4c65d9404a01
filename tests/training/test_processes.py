"""Several processes are one: the same curve, also cut and resumed on another number, killed, or started by others."""

import gc
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from helpers import runs
from helpers.paths import ROOT
from helpers.processes import child, evidence
from helpers.runs import tiny_run

from lorakit import finetune
from lorakit.cli import main
from lorakit.common.errors import LorakitError
from lorakit.machine import distributed
from lorakit.runs.folder import Folder, ReadOnlyRunFolder
from lorakit.tasks import rows
from lorakit.training.launch import _died, together

STARTED = {  # configuration -> (processes, settings)
    "1": (1, {}),
    "2": (2, {}),
    "2 sharded": (2, {"shard": True}),
    "1 NF4": (1, {"quantization": "nf4"}),
    "2 sharded NF4": (2, {"quantization": "nf4", "shard": True}),
}


@pytest.fixture(autouse=True)
def _nobody_is_left(request):
    """No process whose command line names a folder of this test session outlives its test."""
    yield
    root = str(request.getfixturevalue("tmp_path_factory").getbasetemp())
    end = time.monotonic() + 10
    while left := [
        c
        for p in psutil.process_iter(["cmdline"])
        if root in (c := " ".join(p.info["cmdline"] or []))
    ]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def repeat_alone(command, real=runs.repeat_here, **more):
    """A fresh process is one of no crew; this one stands in for it when the others have left."""
    os.environ["WORLD_SIZE"] = "1"
    distributed.join.cache_clear()
    return real(command, **more)


def member(settings, place, act=None, *more):
    """One process of several, told what torchrun, accelerate and deepspeed tell theirs."""
    gc.freeze()  # what was imported before the fork is no garbage: a second less
    os.environ.update(place)
    runs.repeat_here = repeat_alone
    if act:
        act(*more)
    child(settings)


@pytest.fixture(scope="module")
def start(processes):
    """(a run for each process) -> the processes: by hand, with everything imported."""

    def of(*runs, act=None, more=()):
        place = {
            "WORLD_SIZE": str(len(runs)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        members = [
            processes.Process(
                target=member,
                args=(run.given(), {**place, "RANK": str(n), "LOCAL_RANK": str(n)}, act, *more),
            )
            for n, run in enumerate(runs)
        ]
        for process in members:
            process.start()
        return members

    return of


@pytest.fixture(scope="module")
def finish(start):
    """(a run for each process) -> the folder of the first, when all have ended well."""

    def of(*runs, codes=None, **more):
        members = start(*runs, **more)
        for process in members:
            process.join(120)
        said = [(Path(run.output_dir) / "child.txt").read_text() for run in runs]
        assert [p.exitcode for p in members] == (codes or [0] * len(runs)), said
        return Folder(runs[0].folder)

    return of


def free_port():
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


def thirty(base, rows_file, folder, **changes):
    """30 updates in fp32 without dropout at a rate of 1e-3."""
    return tiny_run(
        base,
        rows_file,
        folder,
        dropout=0.0,
        max_updates=30,
        validate_every=10,
        checkpoint_every=10,
        **changes,
    )


def losses(folder):
    """The loss of each update; they follow each other without gap or repetition."""
    updates = folder.history()[0]
    assert [u["update"] for u in updates] == list(range(1, len(updates) + 1))
    return np.array([u["loss"] for u in updates])


# One curve


def note_what_is_held(place):
    """Leaves in held-RANK.json how many bytes of the layers this process had, and the digests of its adapter."""
    from lorakit.engines.torch.engine import TorchEngine

    real = TorchEngine.close

    def close(engine):
        here = [
            getattr(p, "_local_tensor", p)
            for n, p in engine.model.named_parameters()
            if ".layers." in n and "lora_" not in n
        ]
        held = {
            "bytes": sum(p.numel() * p.element_size() for p in here),
            "adapter": {
                n: hashlib.sha256(w.tobytes()).hexdigest() for n, w in engine.weights().items()
            },
        }
        (Path(place) / f"held-{engine.world.rank}.json").write_text(json.dumps(held))
        real(engine)

    TorchEngine.close = close


@pytest.fixture(scope="module")
def curve(finish, base, rows_file, tmp_path_factory):
    """(configuration) -> the folder of its run."""
    known = {}

    def of(name):
        if name not in known:
            count, settings = STARTED[name]
            run = thirty(base, rows_file, tmp_path_factory.mktemp("curve"), **settings)
            known[name] = finish(*[run] * count, act=note_what_is_held, more=[run.output_dir])
        return known[name]

    return of


@pytest.mark.slow
def test_pairs_are_those_of_one_process(finish, base, tmp_path):
    curves = []
    for count in (1, 2):
        run = thirty(
            base,
            str(ROOT / "data/preferences.jsonl"),
            tmp_path / str(count),
            max_length=400,
            max_rows=80,
            max_new_tokens=2,
        )
        curves.append(losses(finish(*[run] * count)))
    assert curves[0][0] == pytest.approx(np.log(2), abs=1e-6) and curves[0][-1] < 0.6
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alone"), [("2", "1"), ("2 sharded", "1"), ("2 sharded NF4", "1 NF4")]
)
def test_the_same_curve_and_everybody_worked(curve, name, alone):
    folder, reference = curve(name), curve(alone)
    assert len(losses(folder)) == 30
    np.testing.assert_allclose(losses(folder), losses(reference), rtol=0, atol=1e-5)
    validations = [[v["validation_loss"] for v in f.history()[1]] for f in (folder, reference)]
    np.testing.assert_allclose(*validations, rtol=0, atol=1e-5)
    assert folder.scores["loss"]["after"] == pytest.approx(
        reference.scores["loss"]["after"], abs=1e-5
    )
    record = folder.record
    assert (record["status"], record["choices"]["processes"]) == (
        "done",
        [2, "as they were started"],
    )
    assert record["proof"]["processes"] == "all 2 trained"
    each = [p["target_tokens"] for p in record["processes"]]
    assert len({p["process"] for p in record["processes"]}) == 2
    assert (
        min(each) > 0.3 * sum(each)
        and sum(each) == record["target_tokens"] == reference.record["target_tokens"]
    )


def held(folder):
    return [json.loads(p.read_text()) for p in sorted(folder.path.parent.glob("held-*.json"))]


@pytest.mark.parametrize(("name", "alone"), [("2 sharded", "1"), ("2 sharded NF4", "1 NF4")])
@pytest.mark.slow
def test_sharded_layers_are_spread_and_adapters_are_whole(curve, name, alone):
    (whole,) = held(curve(alone))
    first, second = held(curve(name))
    assert first["bytes"] + second["bytes"] == whole["bytes"]
    assert max(first["bytes"], second["bytes"]) < 0.6 * whole["bytes"]
    assert (
        first["adapter"] == second["adapter"] and first["adapter"].keys() == whole["adapter"].keys()
    )
    assert [h["bytes"] for h in held(curve("2"))] == [held(curve("1"))[0]["bytes"]] * 2


@pytest.mark.slow
def test_plain_peft_loads_the_adapter_of_a_sharded_run(curve, base):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = curve("2 sharded")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(folder / "adapter")
    ).eval()
    total, count = 0.0, 0
    for row in rows.read(folder / "rows")[0]["test"]:
        ids = torch.tensor(np.asarray(row["ids"])).long()
        marks = torch.tensor(np.asarray(row["targets"], dtype=bool))[1:]
        with torch.no_grad():
            total += float(
                torch.nn.functional.cross_entropy(
                    model(ids[None]).logits[0, :-1][marks], ids[1:][marks], reduction="sum"
                )
            )
        count += int(marks.sum())
    assert total / count == pytest.approx(folder.scores["loss"]["after"], abs=1e-5)


# Cut, and resumed on another number


def stop_after(rank, update):
    """This process is asked to stop when the line of an update is written."""
    owner = ReadOnlyRunFolder if rank else Folder
    real = owner.append

    def append(self, line):
        real(self, line)
        if line.get("update") == update and "loss" in line and int(os.environ["RANK"]) == rank:
            signal.raise_signal(signal.SIGTERM)

    owner.append = append


@pytest.mark.parametrize(
    ("before", "after", "asked"), [(2, 1, 1), pytest.param(1, 2, 0, marks=pytest.mark.slow)]
)
def test_cut_and_resumed_on_another_number(
    start, finish, curve, base, rows_file, tmp_path, before, after, asked
):
    """Asked to stop after update 10, on two processes the second of them; the status is looked at all the while.

    The second process keeps its files elsewhere, as on another host: it finds neither rows nor checkpoint, and leaves
    none.
    """
    run, seen = thirty(base, rows_file, tmp_path), []
    folder, other = Folder(run.folder), run.with_(output_dir=str(tmp_path / "other"))
    for count, stops in ((before, [asked, 10]), (after, [0, 0])):
        members = start(*[run, other][:count], act=stop_after, more=stops)
        while any(p.is_alive() for p in members):
            seen += [s for s in [folder.record["status"]] if s not in seen[-1:]]
            time.sleep(0.02)
        assert [p.exitcode for p in members] == [0] * count, (tmp_path / "child.txt").read_text()
        seen += [s for s in [folder.record["status"]] if s not in seen[-1:]]
        if stops[1]:
            assert (
                folder.record["error"]
                == "stopped on request after update 10; start it again to resume"
            )
            assert len(losses(folder)) == 10
    assert seen == ["queued", "running", "stopped", "running", "done"]
    assert len(losses(folder)) == 30
    np.testing.assert_allclose(losses(folder), losses(curve("1")), rtol=0, atol=1e-5)
    assert [v["update"] for v in folder.history()[1]] == [10, 20, 30]
    assert len(folder.record["processes"]) == after
    assert not other.folder.exists()


def stop_while_talking(update):
    """The first process is asked to stop when the others have just answered whether to stop after an update."""
    real, talks = distributed.World.gather, []

    def gather(world, value):
        said = real(world, value)
        if value == [] and world.first:  # nobody asks; what a validation gathers is not empty
            talks.append(value)
            if len(talks) == update:
                signal.raise_signal(signal.SIGTERM)
        return said

    distributed.World.gather = gather


def test_a_request_to_stop_is_not_lost_at_any_moment(finish, run):
    run = run.with_(test_fraction=0)
    folder = finish(run, run, act=stop_while_talking, more=[5])
    assert folder.record["error"] == "stopped on request after update 6; start it again to resume"
    assert len(losses(folder)) == 6


# A process dies


def workers():
    """rank -> process, of those that this one has launched."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if "lorakit.cli" in process.cmdline() and "RANK" in process.environ():
                found[int(process.environ()["RANK"])] = process
        except psutil.Error:
            continue
    return found


def launched(tmp_path, run, *changes):
    """Exit code of `lorakit train RUN.yaml --processes 2`."""
    path = tmp_path / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(run.given()))
    return main(["train", str(path), *changes])


def struck(tmp_path, run, rank, moment, capsys):
    """Launches, kills process `rank` when `moment()` is true; (exit code, its message, seconds until all had ended)."""
    times, over = [time.monotonic()], threading.Event()

    def strike():
        while not over.wait(0.01):
            if moment() and (found := workers().get(rank)):
                times.append(time.monotonic())
                return found.kill()

    capsys.readouterr()
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        code = launched(tmp_path, run, "--processes", "2")
    finally:
        over.set()
        thread.join()
    return code, capsys.readouterr().err.splitlines()[-1], time.monotonic() - times[-1]


@pytest.fixture(scope="module")
def uncut(finish, base, rows_file, tmp_path_factory):
    """What two processes make of a run of 12 updates."""
    return evidence(
        finish(*[tiny_run(base, rows_file, tmp_path_factory.mktemp("uncut"), processes=2)] * 2)
    )


KILLED = (
    "lorakit: process {} of 2 was killed by SIGKILL, as happens when memory runs out, and could say nothing. "
    "The others were ended with it. Start again: the run goes on from its checkpoint"
)


def resumed(finish, run, uncut):
    """The same start again comes to the same end; of the session's own proof only what does not depend on cuts."""
    found = evidence(finish(run, run))
    assert not list(Path(run.folder).rglob("*.part*"))
    found["proof"].setdefault("processes", uncut["proof"]["processes"])  # nothing was left to train
    assert found == uncut


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_is_killed_while_training(finish, uncut, base, rows_file, tmp_path, capsys, rank):
    run = tiny_run(base, rows_file, tmp_path, processes=2)
    folder, update = Folder(run.folder), random.Random(rank).randint(3, 10)
    before = (
        {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)},
        dict(os.environ),
    )
    code, words, seconds = struck(
        tmp_path, run, rank, lambda: len(folder.history()[0]) >= update, capsys
    )
    assert (code, words) == (1, KILLED.format(rank))
    assert seconds < 30
    assert (folder.record["status"], f"lorakit: {folder.record['error']}") == ("interrupted", words)
    assert 3 <= len(folder.history()[0]) < 12
    assert ({s: signal.getsignal(s) for s in before[0]}, dict(os.environ)) == before
    assert not workers()
    resumed(finish, run, uncut)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_kills(finish, uncut, base, rows_file, tmp_path, capsys):
    """Either process, at a random moment: three in the first ten seconds, seven after a random update."""
    rng, places = random.Random(4), []
    for k in range(10):
        run, rank = (
            tiny_run(base, rows_file, tmp_path, name=f"cut{k}", processes=2),
            rng.randrange(2),
        )
        folder, end, update = (
            Folder(run.folder),
            time.monotonic() + 10 * rng.random(),
            rng.randint(1, 11),
        )
        code, words, seconds = struck(
            tmp_path,
            run,
            rank,
            lambda k=k, f=folder, t=end, n=update: (
                time.monotonic() > t if k < 3 else len(f.history()[0]) >= n
            ),
            capsys,
        )
        places.append((rank, len(folder.history()[0]), folder.record["status"], round(seconds, 1)))
        assert code == 1 or k < 3
        if code:  # else it was over before
            assert words == KILLED.format(rank)
            assert seconds < 30 and folder.record["status"] in ("queued", "interrupted")
        assert not workers()
        resumed(finish, run, uncut)
    print(*places, sep="\n")
    assert len({updates for _, updates, *_ in places}) > 3


@pytest.fixture
def two_cards(tmp_path, monkeypatch):
    """A machine that says it has two cards; on it, what is given as code runs first in every Python."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\necho 'Tesla T4, 15360, 7.5'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tool.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return (tool.parent / "sitecustomize.py").write_text


BROKEN = """
import os, sys
if os.environ.get("RANK") == "1":
    print("OSError: no card here", file=sys.stderr, flush=True)
    os._exit(1)
"""


def test_auto_goes_on_with_one_process_and_says_why(two_cards, quick, run, tmp_path, capsys):
    two_cards(BROKEN)
    assert launched(tmp_path, run.with_(max_updates=2)) == 0
    died = "process 1 of 2 ended with exit code 1. Its last words: OSError: no card here"
    assert f"{died}. Going on with one process\n" in capsys.readouterr().err
    record = Folder(run.folder).record
    assert (record["status"], record["choices"]["processes"]) == (
        "done",
        [1, f"2 did not get to work: {died}"],
    )
    assert len(record["processes"]) == 1
    with pytest.raises(LorakitError, match="process 1 of 2 ended with exit code 1") as error:
        together(
            run.with_(name="asked", processes=2), 2
        )  # what was asked for by number is not taken back
    assert "Start again" in str(error.value)


def test_one_process_on_two_cards_says_what_it_leaves(two_cards, quick, run):
    choices = finetune(run.with_(max_updates=1, shard=True)).record["choices"]
    assert choices["processes"] == [1, "this is one process; lorakit.launch(run) takes all 2 cards"]
    assert choices["shard"] == [False, "one process: there is nobody to share the weights with"]


def test_the_first_to_die_is_named(tmp_path):
    """Of those that are found dead together some only lost the others, or were ended with them."""

    def died(**codes):
        failures = {}
        for rank, (code, words) in enumerate(codes.values()):
            (tmp_path / f"{rank}").mkdir(exist_ok=True)
            (tmp_path / f"{rank}/stderr.log").write_text(words)
            failures[rank] = SimpleNamespace(exitcode=code, timestamp=7)
        return _died(failures, tmp_path, len(codes))

    lost = (1, f"lorakit: {distributed.LOST}; start again\n")
    assert died(a=lost, b=(-9, "")).startswith("process 1 of 2 was killed by SIGKILL")
    assert died(a=(-15, ""), b=(-11, "Fatal Python error: Segmentation fault\n")) == (
        "process 1 of 2 was killed by SIGSEGV. Its last words: Fatal Python error: Segmentation fault"
    )
    bar = "OSError: disk\n  File x\n\x1b[Atraining:  5%|▌    | 1/20\rx.py:3: UserWarning: old\n"
    assert (
        died(a=lost, b=lost, c=(3, bar))
        == "process 2 of 3 ended with exit code 3. Its last words: OSError: disk"
    )
    assert died(a=lost, b=(2, "")) == "process 1 of 2 ended with exit code 2. Its last words: none"
    assert died(a=(-15, ""), b=(-15, "")) == ""  # asked to
    assert distributed.LOST in died(a=lost, b=lost)
    with pytest.raises(LorakitError, match="^x.jsonl: no such file$"):
        died(a=lost, b=(1, "lorakit: x.jsonl: no such file\n"))


# Refused


def do_nothing(rank):
    """This process takes part and trains on nothing."""
    from lorakit.engines.torch.engine import TorchEngine

    real = TorchEngine.update

    def update(engine, *more):
        out = real(engine, *more)
        if engine.world.rank == rank:
            engine.targets_trained = 0
        return out

    TorchEngine.update = update


def refused(finish, runs, words, **more):
    folder = finish(*runs, codes=[1] * len(runs), **more)
    said = (Path(runs[0].output_dir) / "child.txt").read_text()
    assert words in said, said
    return folder


def test_done_is_refused_when_a_process_did_nothing(finish, run):
    words = "done is refused: process 1 trained on nothing; start again with fewer processes"
    folder = refused(finish, [run.with_(max_updates=2)] * 2, words, act=do_nothing, more=[1])
    assert (folder.record["status"], folder.record["error"]) == ("failed", words)
    assert not (folder / "adapter").exists()


def test_hosts_with_other_data_are_refused(finish, run, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(run.data).read_text().replace("yes go", "yes no"))
    refused(
        finish,
        [run, run.with_(data=str(other), output_dir=str(tmp_path / "two"))],
        "process 1 has other data than process 0 (",
    )


def test_more_processes_than_rows_are_refused(finish, run, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a?", "completion": "no"}\n')
    run = run.with_(data=str(path), test_fraction=0, validation_fraction=0)
    refused(
        finish, [run, run], "1 training rows for 2 processes: some would have none; lower processes"
    )


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"RANK": None}, "KeyError: 'RANK'"),
        ({"RANK": "first"}, "ValueError: invalid literal"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR expected"),
    ],
)
def test_an_environment_that_names_no_place_to_meet(monkeypatch, place, words):
    whole = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    distributed.join.cache_clear()
    for name, value in (whole | place).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    with pytest.raises(
        LorakitError, match=f"^WORLD_SIZE=2, and the processes do not meet: .*{words}.*torchrun"
    ):
        distributed.join()


def test_data_that_are_not_there_start_no_process(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lorakit.training.launch.together", None)
    missing = run.with_(data=str(tmp_path / "nowhere.jsonl"))
    assert launched(tmp_path, missing, "--processes", "2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lorakit: {tmp_path}/nowhere.jsonl: no such file")
    assert not run.folder.exists()


@pytest.mark.slow
def test_an_error_of_the_input_comes_from_the_processes_in_one_line(run, tmp_path, capsys):
    refused = run.with_(max_length=8)
    assert launched(tmp_path, refused, "--processes", "2") == 1
    err = capsys.readouterr().err
    assert re.match(r"lorakit: .*max_length=8", err.splitlines()[-1])
    assert "Traceback" not in err
    assert Folder(run.folder).record["status"] == "failed"


# Started by others


@pytest.mark.slow
def test_two_agents_on_two_hosts(base, rows_file, curve, tmp_path):
    """torchrun on each of two "hosts" that share no folder: the second writes nothing."""
    runs = [thirty(base, rows_file, tmp_path / name) for name in ("one", "two")]
    port, agents = free_port(), []
    for host, run in enumerate(runs):
        (tmp_path / f"{host}.yaml").write_text(yaml.safe_dump(run.given()))
        agents.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes",
                    "2",
                    "--nproc-per-node",
                    "1",
                    "--rdzv-backend",
                    "c10d",
                    "--rdzv-endpoint",
                    f"127.0.0.1:{port}",
                    "--rdzv-id",
                    "two",
                    "--local-addr",
                    "127.0.0.1",
                    "-m",
                    "lorakit.cli",
                    "train",
                    str(tmp_path / f"{host}.yaml"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    written = [run for run in runs if Path(run.output_dir).exists()]
    assert len(written) == 1
    folder = Folder(written[0].folder)
    np.testing.assert_allclose(losses(folder), losses(curve("1")), rtol=0, atol=1e-5)
    assert folder.record["status"] == "done" and len(folder.record["processes"]) == 2
    assert sorted("status: done" in words for words in said) == [False, True]


@pytest.mark.slow
def test_accelerate_launch(base, rows_file, curve, tmp_path):
    run = thirty(base, rows_file, tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run.given()))
    out = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            str(free_port()),
            "-m",
            "lorakit.cli",
            "train",
            str(tmp_path / "run.yaml"),
        ],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert out.returncode == 0, out.stderr
    folder = Folder(run.folder)
    assert out.stdout.startswith(f"{folder.path}: status: done\n")
    np.testing.assert_allclose(losses(folder), losses(curve("1")), rtol=0, atol=1e-5)
    assert (
        min(p["target_tokens"] for p in folder.record["processes"]) > 0
        and len(folder.record["processes"]) == 2
    )
