"""Runs in child processes that can be killed."""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import pytest
from tqdm import tqdm

import lorakit
from helpers.runs import without_fresh_process
from lorakit.runs.folder import read_lines

HEAVY = [
    "lorakit.cli",
    "lorakit.training.finetune",
    "lorakit.engines.torch",
    "lorakit.results.report",
    "bitsandbytes",
    "datasets",
    "matplotlib.figure",
    "peft",
    "sklearn",
    "transformers.generation",
]


VOLATILE = ("seconds", "tokens_per_second", "memory_bytes")


def evidence(folder):
    """All that must not depend on cuts: the adapter's bytes, the history, the scores, the answers."""
    lines = [
        {k: v for k, v in line.items() if k not in VOLATILE}
        for line in read_lines(folder / "history.jsonl")
    ]
    return {
        "adapter": hashlib.sha256(
            (folder / "adapter/adapter_model.safetensors").read_bytes()
        ).hexdigest(),
        "history": lines,
        "scores": folder.scores,
        "answers": read_lines(folder / "answers.jsonl"),
        **{
            k: folder.record[k]
            for k in ("status", "updates", "target_tokens", "adapter_from_update", "proof")
        },
    }


def finetune(run):
    return lorakit.finetune(run)


def child(settings, point=None, count=1):
    """One run in a process of its own, killed by itself at the `count`-th call of `point` when one is named."""
    Path(settings["output_dir"]).mkdir(parents=True, exist_ok=True)
    sys.stderr = open(Path(settings["output_dir"]) / "child.txt", "a", buffering=1)  # noqa: SIM115
    try:
        tqdm.set_lock(threading.RLock())  # its own would outlive the process
        without_fresh_process()
        if point:
            kill_at(point, count)
        finetune(lorakit.Run(**settings))
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def kill_at(point, count):
    module, name = point.rsplit(":", 1)
    owner = __import__(module, fromlist=["x"])
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), [0]

    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, deadly)


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit for bit is a promise of the CPU
    warm = context.Process(target=os.getpid)
    warm.start()
    warm.join()
    yield context
    if hidden is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = hidden
