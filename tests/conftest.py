"""What several test files share: a tiny base model, built here, and the folder of real data."""

import atexit
import importlib
import json
import os
import random
import shutil
import tempfile
import types
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a shared machine swings with more
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LORAKIT_CACHE"] = tempfile.mkdtemp(prefix="lorakit-cache-")

import pytest
from helpers.engines import curve, rows  # noqa: F401  (fixtures)
from helpers.models import save_base
from helpers.pictures import BLANK, leaves, made  # noqa: F401  (fixtures)
from helpers.processes import processes  # noqa: F401  (fixtures)
from helpers.runs import repeat_here, tiny_run

import lorakit

atexit.register(shutil.rmtree, os.environ["LORAKIT_CACHE"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    from helpers import gpu_table

    if gpu_table.TABLE:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(gpu_table.lines()))


def pytest_collection_modifyitems(items):
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(autouse=True)
def cpu_without_bf16_units(monkeypatch):
    """Precision `auto` is fp32 on every machine that the tests run on."""
    monkeypatch.setattr("lorakit.machine.hardware.bf16_units", lambda: "")


@pytest.fixture(scope="session")
def real_data():
    """The folder of public files; tests that use it carry the marker `real` by themselves."""
    folder = Path(
        os.environ.get("LORAKIT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data"
    )
    if not folder.is_dir():
        say = pytest.fail if os.environ.get("LORAKIT_REQUIRE_REAL") else pytest.skip
        say(f"no real data: {folder} is not there; set LORAKIT_TEST_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a Llama of two layers, 300 tokens, random weights."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    return save_base(tmp_path_factory.mktemp("base"), config)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """80 questions of random words, answered by two words that the first letter decides."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(320)]
    content = [
        {
            "prompt": " ".join(words[i : i + 4]) + "?",
            "completion": "yes go" if words[i] < "e" else "no",
        }
        for i in range(0, 320, 4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


@pytest.fixture
def run(base, rows_file, tmp_path):
    return tiny_run(base, rows_file, tmp_path / "outputs")


@pytest.fixture(scope="session")
def finished(base, rows_file, tmp_path_factory):
    """The folder of a finished run, proof by a fresh process included. Only to be read: see `copied`."""
    return lorakit.finetune(tiny_run(base, rows_file, tmp_path_factory.mktemp("finished")))


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run that a test may write into."""
    shutil.copytree(finished.path, tmp_path / "copied")
    return lorakit.Folder(tmp_path / "copied")


@pytest.fixture
def quick_drawn(monkeypatch):
    """Runs in this test repeat their answers in this process."""
    monkeypatch.setattr(
        importlib.import_module("lorakit.training.proof"),
        "subprocess",
        types.SimpleNamespace(run=repeat_here),
    )


@pytest.fixture
def quick(quick_drawn, monkeypatch):
    """The same, and their reports hold blank pictures: to draw them takes longer than such a run."""
    monkeypatch.setattr("lorakit.results.plots.png", lambda draw, *_, **__: BLANK)


@pytest.fixture
def here(monkeypatch):
    """The round trip of an export in this process: what a fresh one computes, some seconds faster."""
    from lorakit.exporting import fresh_process

    monkeypatch.setattr(fresh_process, "ask_in_fresh_process", fresh_process.ask)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    """The folder of a tuned run with 24 different answers. Only to be read."""
    from helpers.tuned import shrunken, tuned_run

    folder = tmp_path_factory.mktemp("mistral")
    return tuned_run(shrunken("mistral", folder / "base"), folder).path
