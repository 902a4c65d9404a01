"""Checkpoints as the hub holds them: encoders without a head, tokenizers without an end token."""

import json

import numpy as np
import pytest
from helpers import encoders

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.models import base_model

KINDS = ("bert", "distilbert", "roberta")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """80 texts of two kinds."""
    rng, kinds = np.random.default_rng(0), {"need": "water food help", "news": "sun wind rain"}
    lines = [
        {"text": f"{rng.choice(words.split())} the {i}", "label": kind}
        for i in range(40)
        for kind, words in kinds.items()
    ]
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "rows.jsonl"
    lines = [{"prompt": f"where is {i}?", "completion": f"at {i}"} for i in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def run(model, data, folder, **changes):
    return lorakit.Run(
        **{
            "name": "run",
            "model": model,
            "data": data,
            "output_dir": str(folder),
            "precision": "fp32",
            "quantization": "none",
            "max_length": 48,
            "max_updates": 50,
            "learning_rate": 5e-3,
            "test_fraction": 0.25,
            **changes,
        }
    )


@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_an_encoder_without_a_head_learns_classes(kind, labelled, quick, tmp_path):
    task = "classify_text" if kind == "bert" else "auto"
    model = encoders.saved(kind, tmp_path / kind)
    folder = lorakit.finetune(run(model, labelled, tmp_path, task=task))
    assert folder.record["status"] == "done"
    assert folder.record["data"]["task"] == "classify_text"
    scores = folder.scores
    assert scores["accuracy"]["after"] >= 0.8
    assert scores["loss"]["after"] < scores["loss"]["before"] - 0.2


def test_the_tokens_of_a_class_row_are_the_tokenizers_own(labelled, tmp_path):
    """[CLS] at the beginning, [SEP] at the end, and neither cut nor padded by what the tokenizer's file says."""
    model = encoders.saved("bert", tmp_path / "bert")
    prepared = lorakit.prepare(run(model, labelled, tmp_path, max_length=48))
    ids = prepared.rows["train"][0]["ids"].tolist()
    assert ids[0] == 2 and ids[-1] == 3 and 0 not in ids
    tokenizer, _, notes = base_model.reader(model)
    assert tokenizer.eos_token is None and notes == []


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_refused_of_an_encoder_by_what_it_is(kind, answers, tmp_path):
    model = encoders.saved(kind, tmp_path / kind)
    with pytest.raises(LorakitError, match="classify_text"):
        lorakit.prepare(run(model, answers, tmp_path))
    with pytest.raises(LorakitError, match="classify_text"):
        lorakit.prepare(run(model, answers, tmp_path, task="chat"))
