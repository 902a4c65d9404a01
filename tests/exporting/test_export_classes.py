"""Exported classifiers give every class the probability that the tuned model gives it."""

import importlib
import json

import numpy as np
import pytest
from helpers.pictures import CLASSES, trained
from helpers.tuned import content, left

from lorakit import cli
from lorakit.common.errors import LorakitError
from lorakit.exporting.serve import serve

exporting = importlib.import_module("lorakit.exporting.round_trip")


@pytest.fixture(scope="module")
def classifiers(made, leaves, tmp_path_factory):
    """name -> the folder of a tuned classifier. Only to be read."""
    folder, known = tmp_path_factory.mktemp("classifiers"), {}
    rng, kinds = np.random.default_rng(0), {"need": "water food help", "news": "sun wind rain"}
    lines = [
        {"text": f"{rng.choice(words.split())} {i}", "label": kind}
        for i in range(40)
        for kind, words in kinds.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def tune(name):
        if name not in known:
            task = "classify_image" if name.startswith("vit") else "classify_text"
            data = leaves if task == "classify_image" else str(folder / "rows.jsonl")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    importlib.import_module("lorakit.training.proof"), "repeated", lambda *_: {}
                )
                known[name] = trained(
                    name,
                    made(name),
                    data,
                    folder,
                    task=task,
                    max_updates=25,
                    max_length=32,
                    test_fraction=0.3,
                    rank=4,
                ).path
            without_template(known[name])  # as most classifiers are
        return known[name]

    return tune


def without_template(run):
    """The run as of a tokenizer that has no chat template."""
    (run / "adapter" / "chat_template.jinja").unlink(missing_ok=True)
    record = json.loads((run / "record.json").read_text())
    record["files"].pop("adapter/chat_template.jinja", None)
    (run / "record.json").write_text(json.dumps(record))


MODELS, SOON = (
    ("distilbert", "opt-125m", "vit-base"),
    {("distilbert", "merged", "fp32"), ("vit-base", "onnx", "fp32")},
)
KINDS = [
    ("adapter", "fp32"),
    ("merged", "fp32"),
    ("merged", "bf16"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
]


@pytest.mark.parametrize(
    "name, target, kind",
    [
        pytest.param(
            name,
            *kind,
            id="-".join((name, *kind)),
            marks=[pytest.mark.slow] * ((name, *kind) not in SOON),
        )
        for name in MODELS
        for kind in KINDS
    ],
)
def test_every_class_keeps_its_probability(classifiers, tmp_path, here, target, kind, name):
    run = classifiers(name)
    found = content(exporting.export(run, target, tmp_path / "out", type=kind))
    off, share = found["probabilities"], found["agreement"]
    assert share["distinct"] >= 2 and not share["proves_little"] and share["prompts"] >= 14
    if kind == "fp32":
        assert (
            off["bound"] == 1e-4
            and off["largest_difference"] <= 1e-4
            and share["identical"] == share["prompts"]
        )
    else:
        assert (
            0 < off["largest_difference"] <= off["bound"]
            and share["identical"] >= 0.9 * share["prompts"]
        )
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{share['identical']} of {share['prompts']} rows have the tuned model's class" in card
    assert left(tmp_path) == ["out"]


@pytest.mark.slow
def test_a_fresh_process_repeats_the_classes(classifiers, tmp_path, capsys):
    run = classifiers("vit-base")
    assert (
        cli.main(
            ["export", str(run), "--to", "merged", "--type", "fp32", "--out", str(tmp_path / "out")]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "rows have the tuned model's class; the probability of a class differs by at most " in said
    )
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(
        left(tmp_path / "out")
    )
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert sorted(settings["label2id"]) == sorted(CLASSES)


def test_another_head_is_not_called_done(classifiers, tmp_path, here, monkeypatch):
    from lorakit.exporting.transformers_model import TransformersModel as Plain

    def tilted(self, given, plain=Plain.probabilities):
        found = plain(self, given)
        return found + np.array([2e-4, -2e-4])

    monkeypatch.setattr(Plain, "probabilities", tilted)
    with pytest.raises(LorakitError, match="the probability of a class differs by 2.0e-04"):
        exporting.export(classifiers("distilbert"), "merged", tmp_path / "at" / "out", type="fp32")
    assert left(tmp_path / "at") == []


def test_what_a_classifier_cannot_become(classifiers, tmp_path):
    run = classifiers("distilbert")
    with pytest.raises(
        LorakitError,
        match="task=classify_text: .*; a classifier can be exported --to adapter, merged, onnx",
    ):
        exporting.export(run, "gguf", tmp_path / "at" / "out")
    with pytest.raises(
        LorakitError, match="a classifier's head is part of its adapter; export each alone"
    ):
        exporting.export(run, "adapter", tmp_path / "at" / "out", also=[str(run)])
    with pytest.raises(LorakitError, match="a classifier answers no chat; ask it by lorakit ask"):
        serve(run)
    assert left(tmp_path / "at") == []
