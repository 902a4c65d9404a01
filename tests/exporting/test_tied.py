"""Tied embeddings: what an adapter changes in the head does not change the embeddings, in no format."""

import shutil

import pytest
import torch
from helpers.tuned import content, shrunken, tuned_run

from lorakit.common.errors import LorakitError
from lorakit.exporting.round_trip import export
from lorakit.exporting.source import source
from lorakit.models.merge import refuse_changed, untie

TARGETS = {
    "head": ["q_proj", "v_proj", "lm_head"],
    "embeddings": ["q_proj", "v_proj", "embed_tokens"],
    "both": ["q_proj", "lm_head", "embed_tokens"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """name of `TARGETS` -> the folder of a run on a tied base. Only to be read."""
    known = {}

    def tune(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            base = shrunken("llama", folder / "base", tie_word_embeddings=True)
            known[name] = tuned_run(base, folder, target_modules=TARGETS[name], max_updates=30).path
        return known[name]

    return tune


def tensors(path):
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("head", "embeddings")), "both"],
)
def test_every_tensor_without_an_adapter_is_the_base_s(run, tmp_path, here, name):
    path = run(name)
    out = export(path, "merged", tmp_path / "out", type="fp32")
    base, saved = (
        tensors(path.parent / "base" / "model.safetensors"),
        tensors(out / "model.safetensors"),
    )
    embeddings = base["model.embed_tokens.weight"]
    assert not torch.equal(saved["lm_head.weight"], saved["model.embed_tokens.weight"])
    expected = {"lm_head.weight": embeddings, **base}
    changed = {n for n, tensor in saved.items() if not torch.equal(tensor, expected[n])}
    assert {n.split(".")[-2] for n in changed} == set(TARGETS[name])
    assert content(out)["divergence"]["other_texts"]["nats"] < 1e-6


@pytest.mark.parametrize(
    "target, type_",
    [
        ("gguf", "f32"),
        ("gguf", "adapter"),
        pytest.param("onnx", "fp32", marks=pytest.mark.slow),
        pytest.param("mlx", "fp32", marks=pytest.mark.slow),
        ("adapter", "fp32"),
    ],
)
def test_an_adapted_head_in_every_format(run, tmp_path, here, target, type_):
    found = content(export(run("head"), target, tmp_path / "out", type=type_))
    assert found["divergence"]["other_texts"]["nats"] < 1e-4
    assert found["agreement"]["identical"] == found["agreement"]["prompts"]


def test_adapted_embeddings_that_a_format_has_not_are_refused_by_name(run, tmp_path):
    with pytest.raises(LorakitError, match="embed_tokens"):
        export(run("embeddings"), "gguf", tmp_path / "out", type="adapter")
    assert not (tmp_path / "out").exists()


def test_a_merge_into_shared_weights_is_noticed(run, tmp_path, here, monkeypatch):
    """What was wrong before: the head merged into the tensor that the embeddings share."""
    monkeypatch.setattr("lorakit.models.merge.untie", lambda model, adapter: False)
    with pytest.raises(LorakitError, match="merging changed 'model.embed_tokens.weight'"):
        export(run("head"), "merged", tmp_path / "out", type="fp32")


def test_a_base_whose_adapter_leaves_both_alone_stays_tied(tmp_path):
    base = shrunken("llama", tmp_path / "base", tie_word_embeddings=True)
    path = tuned_run(base, tmp_path, max_updates=2).path
    opened = source(path)
    model = opened.model("fp32")
    assert not untie(model, opened.saved) and model.config.tie_word_embeddings


def test_a_changed_tensor_is_named():
    refuse_changed({"a.w": 1, "b.w": 2}, {"a.w": 5, "b.w": 2}, ["a"], "base")
    with pytest.raises(LorakitError, match="merging changed 'b.w'"):
        refuse_changed({"a.w": 1, "b.w": 2}, {"a.w": 5, "b.w": 3}, ["a"], "base")


def test_answers_beyond_ascii_under_a_byte_level_vocabulary(tmp_path, here):
    """ö, –, €, emoji and CJK are several tokens each: a file is judged token by token, not text by text."""
    import json

    answers = ["Wir öffnen um acht – für 45 €", "今日は雨です", "Bis morgen 🎉🎉", "Größe Ä naïve"]
    rows = [
        {"prompt": f"{i}: shop {i % 7}?", "completion": answers[i % 4] + f" {i}"} for i in range(24)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    base = shrunken("llama", tmp_path / "base")
    path = tuned_run(base, tmp_path, data=str(data), max_updates=20).path
    found = content(export(path, "gguf", tmp_path / "out", type="f32"))
    assert found["texts_read_alike"] == 24 and found["conversations_written_alike"] >= 2
    assert found["divergence"]["own_rows"]["nats"] < 1e-4
    assert shutil.rmtree(tmp_path / "out") is None
