"""The files of clusters/: what each starts, on how many nodes and cards, and what it does when its time is over.

The schedulers' own commands are stand-ins here; torchrun's and lorakit's parsers are the real ones.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

from lorakit import cli
from lorakit.commands import settings, training
from lorakit.run import Run

CLUSTERS = ROOT / "clusters"
FILES = sorted(p for p in CLUSTERS.iterdir() if p.suffix != ".md")
SLURM = CLUSTERS / "slurm.sbatch"
TRAIN_JOB = ("apiVersion", "trainer.kubeflow.org/v1alpha1"), ("kind", "TrainJob")


def stand_in(folder, name, script):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def here(tmp_path):
    """A folder with commands that write down what they were asked, and an environment to activate."""
    stand_in(tmp_path, "torchrun", 'printf "%s\\n" "$@" > arguments; eval "$DOING"')
    stand_in(tmp_path, "srun", '"$@"')
    stand_in(
        tmp_path,
        "scontrol",
        '[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "scontrol $*" >> log',
    )
    stand_in(tmp_path, "scancel", 'echo "scancel $*" >> log; touch asked')
    stand_in(tmp_path, "activate", "")
    return tmp_path


def started(here, script, doing="", *arguments, **more):
    """Begins a script in `here`."""
    environment = {
        **os.environ,
        "PATH": f"{here}/bin:{os.environ['PATH']}",
        "DOING": doing,
        "VENV": str(here),
        **more,
    }
    return subprocess.Popen(["bash", "-c", script, "script", *arguments], env=environment, cwd=here)


def slurm(here, doing="", *arguments):
    asked = directives()
    return started(
        here,
        SLURM.read_text(),
        doing,
        *arguments,
        SLURM_JOB_ID="7",
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_NNODES=asked["nodes"],
        SLURM_GPUS_ON_NODE=asked["gpus-per-node"],
        ENVIRONMENT="BATCH",
    )


def directives():
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SLURM.read_text(), re.M)
    return dict(lines)


def train_job():
    (claim, job) = yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())
    return claim, job


def sky():
    return yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def read(arguments):
    """(torchrun's options, lorakit's) of a command line, by their own parsers."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert options.module and options.training_script == "lorakit.cli"
    found = cli.parser().parse_args(options.training_script_args)
    assert found.call is training.train
    Run(data="-", **settings.changes_of(found))
    return options, found


def of_slurm(here, monkeypatch):
    assert slurm(here, "", "my run.yaml").wait(20) == 0
    asked = directives()
    return asked["nodes"], asked["gpus-per-node"], (here / "arguments").read_text().splitlines()


def of_kubernetes(here, monkeypatch):
    trainer = train_job()[1]["spec"]["trainer"]
    cards = trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    told = {
        "NNODES": trainer["numNodes"],
        "NPROC_PER_NODE": "auto",
        "NODE_RANK": 1,
        "MASTER_ADDR": "lorakit-node-0-0.lorakit",
        "MASTER_PORT": 29400,
    }
    for name, value in told.items():  # as the runtime torch-distributed does
        monkeypatch.setenv(f"PET_{name}", str(value))
    assert trainer["command"] == ["torchrun"]
    return trainer["numNodes"], cards, trainer["args"]


def of_skypilot(here, monkeypatch):
    task = sky()
    cards = task["resources"]["accelerators"].split(":")[1]
    told = {
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NUM_GPUS_PER_NODE": cards,
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    ran = started(here, task["run"], RUN="my run.yaml", **told)
    assert ran.wait(20) == 0
    return task["num_nodes"], cards, (here / "arguments").read_text().splitlines()


SYSTEMS = {"slurm.sbatch": of_slurm, "kubernetes.yaml": of_kubernetes, "skypilot.yaml": of_skypilot}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_it_starts_a_process_for_each_card_of_each_node(path, here, monkeypatch):
    nodes, cards, arguments = SYSTEMS[path.name](here, monkeypatch)
    options, _ = read(arguments)
    assert int(options.nnodes) == int(nodes) == 2
    assert int(cards) == 4 and options.nproc_per_node in (
        str(cards),
        "auto",
    )  # auto: as many as there are cards
    assert all(arguments), "no variable is empty"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_it_holds_no_secret(path):
    text = path.read_text()
    assert not re.search(r"hf_\w{8,}|[A-Za-z0-9+/_-]{40,}", text)
    assert not re.search(r"(?i)(token|password|secret)\w* *[=:] *['\"]?[\w-]{8,}", text)


def test_the_places_to_meet(here, monkeypatch):
    options, found = read(of_slurm(here, monkeypatch)[2])
    assert (options.rdzv_backend, options.rdzv_id, options.rdzv_endpoint) == (
        "c10d",
        "7",
        "node7:20007",
    )
    assert found.run == "my run.yaml"
    options, found = read(of_skypilot(here, monkeypatch)[2])
    assert (options.node_rank, options.master_addr, options.master_port) == (1, "10.0.0.1", 29500)
    assert (found.run, found.changes) == ("my run.yaml", ["output_dir=/outputs"])
    options, found = read(of_kubernetes(here, monkeypatch)[2])
    assert (options.node_rank, options.master_addr, options.master_port) == (
        1,
        "lorakit-node-0-0.lorakit",
        29400,
    )
    assert (found.run, found.changes) == ("/work/RUN.yaml", ["output_dir=/work/outputs"])


# Slurm


def test_the_job_asks_for_one_torchrun_a_node_and_a_signal_before_the_end():
    asked = directives()
    assert asked["ntasks-per-node"] == "1" and "requeue" in asked and asked["open-mode"] == "append"
    to, seconds = re.fullmatch(r"(B:USR1)@(\d+)", asked["signal"]).groups()
    patience = re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SLURM.read_text())[1]
    assert to == "B:USR1" and int(patience) < int(seconds)
    text = SLURM.read_text().splitlines()
    first = next(i for i, line in enumerate(text) if line and not line.startswith("#"))
    assert not [
        line for line in text[first:] if line.startswith("#SBATCH")
    ]  # sbatch reads none after a command


def test_before_the_end_the_step_is_terminated_and_the_job_queued_again(here):
    job = slurm(
        here, "while [ ! -e asked ]; do sleep 0.02; done; sleep 0.2; echo checkpoint >> log; exit 1"
    )
    until((here / "arguments").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0
    assert (here / "log").read_text().splitlines() == [
        "scancel --signal=TERM 7.0",
        "checkpoint",
        "scontrol requeue 7",
    ]


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_ends_by_itself_is_not_queued_again(here, code):
    assert slurm(here, f"exit {code}").wait(20) == code
    assert not (here / "log").exists()


@pytest.mark.parametrize(
    "script", [SLURM.read_text(), sky()["setup"], sky()["run"]], ids=["slurm", "setup", "run"]
)
def test_the_scripts_parse(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


# Kubernetes


def test_the_train_job_mounts_its_volume_and_takes_the_token_from_a_secret():
    claim, job = train_job()
    assert dict(TRAIN_JOB).items() <= job.items()
    spec = job["spec"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert (
        spec["trainer"]["resourcesPerNode"]["requests"]
        == spec["trainer"]["resourcesPerNode"]["limits"]
    )
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (
        node["name"] == container["name"] == "node" and "env" not in container
    )  # refused there by the webhook
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert mounts.keys() == volumes.keys() and mounts["work"] == "/work"
    assert claim["kind"] == "PersistentVolumeClaim" and claim["spec"]["accessModes"] == [
        "ReadWriteMany"
    ]
    assert volumes["work"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    environment = {e["name"]: e for e in spec["trainer"]["env"]}
    assert set(environment["HF_TOKEN"]) == {"name", "valueFrom"} and not any(
        n.startswith("PET_") for n in environment
    )
    assert environment["HF_HOME"]["value"].startswith(mounts["work"])


# SkyPilot


def test_the_task_keeps_its_outputs_and_comes_back():
    task = sky()
    assert task["file_mounts"]["/outputs"] == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"}
    assert {"RUN", "BUCKET"} == set(task["envs"]) and task["secrets"] == {"HF_TOKEN": ""}
    assert task["resources"]["use_spot"] is True and task["resources"]["job_recovery"] == "FAILOVER"


# The page beside them


def test_the_readme_names_each_file_as_it_is_started():
    page = (CLUSTERS / "README.md").read_text()
    commands = [shlex.split(c) for c in re.findall(r"`((?:sbatch|kubectl|sky) [^`]+)`", page)]
    named = {
        Path(word).name for words in commands for word in words if word.startswith("clusters/")
    }
    assert named == {p.name for p in FILES} == set(SYSTEMS)
