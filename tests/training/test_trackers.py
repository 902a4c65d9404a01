"""What goes to TensorBoard, trackio and Weights & Biases, read back from where their own libraries keep it."""

import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.trackers import LINES, written

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.results import logs
from lorakit.training.trackers import Trackers


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    written("tensorboard", tmp_path)
    log = logs.read(tmp_path / "tensorboard")
    assert [(u["update"], u["loss"]) for u in log.updates] == [(1, 3.0), (2, 2.0)]
    assert log.validations == {"validation": [(2, 2.5)]}


CHILD = """
import sys
from pathlib import Path
from helpers.trackers import written
written(sys.argv[1], Path(sys.argv[2]))
"""


def child(name, folder, monkeypatch):
    """The libraries start threads and servers of their own: not in this process."""
    return subprocess.run(
        [sys.executable, "-c", CHILD, name, str(folder)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    done = child("trackio", tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    kept = b"".join(p.read_bytes() for p in (tmp_path / "kept").rglob("*") if p.is_file())
    assert b"validation_loss" in kept and b"first" in kept


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = child("wandb", tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    (kept,) = tmp_path.rglob("*.wandb")
    assert b"validation_loss" in kept.read_bytes()
    assert len((tmp_path / "wandb-id.txt").read_text()) >= 8


@pytest.mark.parametrize("name", registry.names("trackers"))
def test_each_says_how_to_install_it(name, tmp_path, monkeypatch):
    module = registry.load("trackers", name)

    def missing(*_):
        raise ImportError(name)

    monkeypatch.setattr(module, "Tracker", missing)
    with pytest.raises(
        LorakitError, match=f"log_to: {name}: its library is not installed: pip install {name}"
    ):
        Trackers([name], "run", {}, tmp_path)


def test_a_service_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    module, seen = registry.load("trackers", "trackio"), []

    class Broken:
        def __init__(self, *_):
            pass

        def log(self, update, values):
            seen.append((update, values))
            raise ConnectionError("gone")

    monkeypatch.setattr(module, "Tracker", Broken)
    trackers = Trackers(["trackio"], "run", {}, tmp_path)
    for line in LINES:
        trackers.log(line)
    trackers.close()
    assert seen == [(1, {"loss": 3.0, "target_tokens": 5.0, "skipped": 0.0})]
    assert "log_to: trackio is left out from update 1 on: gone" in capsys.readouterr().err
    monkeypatch.setattr(Broken, "__init__", lambda *_: (_ for _ in ()).throw(OSError("no key")))
    with pytest.raises(
        LorakitError, match=r"trackio cannot begin \(no key\); leave it out of log_to, or: "
    ):
        Trackers(["trackio"], "run", {}, tmp_path)
    with pytest.raises(LorakitError, match="there is no tracker 'mlflow'"):
        Trackers(["mlflow"], "run", {}, tmp_path)
