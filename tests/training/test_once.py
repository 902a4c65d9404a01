"""What a run computes, it computes once."""

import hashlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from helpers.models import save_base
from helpers.runs import repeat_here, tiny_run
from transformers import AutoConfig, LlamaConfig

import lorakit
from lorakit import engines
from lorakit.common import files
from lorakit.models import base_model
from lorakit.planning import memory
from lorakit.runs.folder import RunFolder
from lorakit.training import finetune, proof


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A base that nothing is known of yet."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    memory._count.cache_clear()
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    return save_base(tmp_path / "base", config)


@pytest.fixture
def counted(monkeypatch):
    """name -> how often; simulations and tables by what they were of."""
    counts = Counter()

    def count(owner, name, key=lambda *_, **__: "", **more):
        real = getattr(owner, name)

        def wrapped(*arguments, **named):
            counts[name, key(*arguments, **named)] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, wrapped, **more)

    count(AutoConfig, "from_pretrained")
    count(
        engines.get("torch"),
        "working_bytes",
        lambda run, *more: json.dumps([run.model_dump(exclude=memory.NO_INFLUENCE), *more]),
    )
    count(hashlib, "file_digest", lambda file, _: file.name)
    return counts


def test_a_run_counts_reads_and_hashes_once(fresh, counted, rows_file, tmp_path, monkeypatch):
    read, real = Counter(), finetune.rows.read
    monkeypatch.setattr(proof, "repeated", lambda *_: {})
    monkeypatch.setattr(
        "lorakit.tasks.rows.read",
        lambda folder, *more: read.update([str(folder)]) or real(folder, *more),
    )
    run = tiny_run(fresh, rows_file, tmp_path / "out", max_updates=4)
    assert lorakit.finetune(run).record["status"] == "done"
    assert counted["from_pretrained", ""] == 1
    simulations = {key: n for key, n in counted.items() if key[0] == "working_bytes"}
    assert simulations and set(simulations.values()) == {1}
    hashed = {key: n for key, n in counted.items() if key[0] == "file_digest"}
    assert set(hashed.values()) == {1} and any("model.safetensors" in name for _, name in hashed)
    assert sum(read.values()) == 1  # each table is read and validated


def test_a_file_is_hashed_once_for_each_state(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    path, reads = tmp_path / "weights", []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *more: reads.append(1) or real(*more))
    path.write_bytes(b"one")
    first = files.file_hash(path)
    assert files.file_hash(path) == first == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert files.file_hash(path) == hashlib.sha256(b"other").hexdigest() and len(reads) == 2


def test_ask_reads_no_rows(quick_run, monkeypatch):
    def never(*_):
        raise AssertionError("rows were read")

    monkeypatch.setattr("lorakit.tasks.rows.read", never)
    assert len(lorakit.ask(quick_run.path, "a question?", max_new_tokens=2)) == 1


@pytest.fixture
def quick_run(base, rows_file, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "subprocess", SimpleNamespace(run=repeat_here))
    run = tiny_run(base, rows_file, tmp_path, max_updates=2, test_fraction=0.0)
    folder = lorakit.finetune(run)
    assert isinstance(folder, RunFolder)
    return folder


def test_one_object_for_a_base_as_long_as_its_files_stay(tmp_path, base):
    assert base_model.of(base) is base_model.of(base)
    copied = base_model.config(base)
    copied.hidden_size = 1
    assert base_model.config(base).hidden_size == 64
