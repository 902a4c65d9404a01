"""Exports: each target's own runtime repeats what the tuned model says, and what fails leaves nothing behind."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tuned import content, left, shrunken, tuned_run

from lorakit import cli
from lorakit.common import registry
from lorakit.common.errors import LorakitError

exporting = importlib.import_module("lorakit.exporting.round_trip")
SLOW = {("onnx", "int8"), ("merged", "fp16")}  # as the other type of their target
EVERY = [
    (target, kind)
    for target in registry.names("export")
    for kind in registry.load("export", target).TARGET.types
]


@pytest.mark.parametrize("name", registry.names("export"))
def test_a_target_keeps_the_contract(name):
    target = registry.load("export", name).TARGET
    assert target.use.format(base="owner/base", name="run", kind="AutoModel")
    for kind, bounds in target.types.items():
        disk, memory = target.room(10**9, kind)
        assert 0 < bounds.added_nats <= 1 and 0 < bounds.divergence <= 1
        assert 0.5 <= bounds.agreement <= 1
        assert disk > 1e7 and memory > 1e9


@pytest.mark.parametrize(
    "target, kind",
    [
        pytest.param(*each, id="-".join(each), marks=[pytest.mark.slow] * (each in SLOW))
        for each in EVERY
    ],
)
def test_the_runtime_repeats_the_tuned_model(mistral, tmp_path, here, target, kind):
    found = content(exporting.export(mistral, target, tmp_path / "out", type=kind))
    asked = found["agreement"]
    assert (
        asked["prompts"] == asked["distinct"] == (24 if target != "adapter" else asked["prompts"])
    )
    divergence = found["divergence"]
    assert divergence["other_texts"]["positions"] > 300
    if kind in ("fp32", "f32"):
        assert found["agreement"]["identical"] == found["agreement"]["prompts"]
        assert abs(found["perplexity"]["added_nats"]) < 1e-5
        assert divergence["own_rows"]["nats"] < 1e-5 > divergence["other_texts"]["nats"]
    if kind in ("fp16", "bf16", "f16", "q8_0"):
        assert found["agreement"]["tokens"] >= 0.95
        assert abs(found["perplexity"]["added_nats"]) < 0.02
    assert found["bytes"] == sum(
        f["bytes"]
        for n, f in found["files"].items()
        if n.endswith((".safetensors", ".gguf", ".onnx"))
    )
    assert found["tokens_per_second"]["after"] > 0 and found["base_sha256"]
    assert left(tmp_path) == ["out"]


def test_sizes_follow_the_bits(mistral, tmp_path, here):
    size = {
        kind: content(exporting.export(mistral, "gguf", tmp_path / kind, type=kind))["bytes"]
        for kind in ("f32", "f16", "q8_0", "q4_0")
    }
    weights = size["f32"] - size["f16"]  # in units of 2 bytes
    assert size["f16"] - size["q8_0"] == pytest.approx(weights * (16 - 8.5) / 16, rel=0.02)
    assert size["q8_0"] - size["q4_0"] == pytest.approx(weights * 4 / 16, rel=0.02)


def test_a_fresh_process_proves_it_and_the_command_says_so(mistral, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        cli.main(["export", str(mistral), "--to", "gguf", "--type", "f32", "--out", str(out)]) == 0
    )
    said = capsys.readouterr().out
    assert f"{out}\ngguf f32: " in said and "loaded by a fresh process" in said
    assert (
        "24 of 24 greedy answers are the tuned model's, token by token (100.0% of the tokens"
        in said
        and "on texts unlike the run's: KL divergence " in said
    )
    assert left(out) == ["Modelfile", "README.md", "export.json", "model.gguf"]
    (line,) = exporting.table(out)
    assert (
        line["export"] == "gguf f32"
        and line["identical_answers"] == "24 of 24"
        and line["equal_tokens"] == 1.0
    )


# What a quantized base, a whole model and several adapters become


def test_a_quantized_base_is_merged_into_its_unquantized_weights(tmp_path, here):
    run = tuned_run(shrunken("llama", tmp_path / "base"), tmp_path, quantization="nf4").path
    found = content(exporting.export(run, "merged", tmp_path / "out", type="fp32"))
    (note,) = found["notes"]
    assert note == "tuned on a base in nf4, merged into its unquantized weights"
    assert found["agreement"]["identical"] == 24


def test_without_room_for_unquantized_weights_it_is_said(mistral, tmp_path, here, monkeypatch):
    run = Path(shutil.copytree(mistral, tmp_path / "run"))
    settings = (run / "run.yaml").read_text().replace("\nquantization: none", "\nquantization: nf4")
    (run / "run.yaml").write_text(settings)
    monkeypatch.setattr("lorakit.exporting.reference._precision", lambda source: None)
    found = content(exporting.export(run, "merged", tmp_path / "out", type="fp32"))
    assert found["notes"] == [
        "run.yaml has quantization: nf4, the run was trained with none: other answers",
        "there is no room for the base's unquantized weights: compared with the model in nf4, "
        "and what merging changes is not measured",
    ]
    divergence = found["divergence"]
    assert divergence["bound"] == 0.7
    assert divergence["own_rows"]["nats"] > 1e-4 < divergence["other_texts"]["nats"]


def test_16_bits_are_merged_in_fp32_and_cast_once(mistral, tmp_path, here):
    """W + s B A of fp32 numbers, rounded to bf16: not a sum of rounded ones."""
    from safetensors.torch import load_file

    from lorakit.engines.mlx import adapters

    exporting.export(mistral, "merged", tmp_path / "out", type="bf16")
    name = "model.layers.1.self_attn.q_proj"
    settings, layers = adapters.read_peft(mistral / "adapter")
    base = load_file(
        json.loads((mistral / "record.json").read_text())["model"] + "/model.safetensors"
    )
    pair = layers[name]
    expected = base[f"{name}.weight"].numpy() + adapters.scale(settings) * pair["B"] @ pair["A"]
    saved = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    import torch

    assert saved.dtype == torch.bfloat16
    differs = saved != torch.from_numpy(expected).bfloat16()
    assert differs.float().mean() < 0.001  # the last bit of a sum in another order


def test_a_whole_model(tmp_path, here):
    run = tuned_run(
        shrunken("llama", tmp_path / "base"),
        tmp_path,
        method="full",
        learning_rate=3e-3,
        max_updates=20,
    ).path
    assert (
        content(exporting.export(run, "merged", tmp_path / "out", type="fp32"))["agreement"][
            "identical"
        ]
        == 24
    )
    with pytest.raises(LorakitError, match="method=full has no adapter; export it --to merged"):
        exporting.export(run, "adapter", tmp_path / "adapter")
    assert left(tmp_path / "adapter") == []


def test_adapters_of_one_base_go_together_and_are_switched(mistral, tmp_path, here):
    base = json.loads((mistral / "record.json").read_text())["model"]
    other = tuned_run(base, tmp_path, name="other", shift=5).path
    found = content(exporting.export(mistral, "adapter", tmp_path / "out", also=[str(other)]))
    assert found["switched"] == {"other": 1.0}
    assert found["notes"] == ["adapters to switch by name: run, other"]
    assert left(tmp_path / "out") == ["README.md", "export.json", "other", "run"]


# llama.cpp's rules, by hand


def test_rows_of_a_head_are_interleaved():
    from lorakit.exporting.gguf.tensors import interleave

    rows = np.arange(8).reshape(8, 1)  # two heads of four: halves (0 1 | 2 3), (4 5 | 6 7)
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    "kind, bits, error", [("Q4_K", 4.5, 0.08), ("Q5_K", 5.5, 0.04), ("Q6_K", 6.5625, 0.02)]
)
def test_k_types_are_what_the_package_gguf_reads(kind, bits, error):
    import gguf

    from lorakit.exporting.gguf.quantization import packed

    tensor = np.random.default_rng(0).normal(size=(3, 16, 512)).astype(np.float32)
    stored = gguf.GGMLQuantizationType[kind]
    data = packed(tensor, stored)
    assert data.nbytes * 8 / tensor.size == bits
    back = gguf.quants.dequantize(data, stored)
    assert back.shape == tensor.shape and np.sqrt(np.mean((back - tensor) ** 2)) < error


def test_q4_k_m_gives_more_bits_where_llama_cpp_does():
    from lorakit.exporting.gguf.quantization import mixed

    more = [0, 1, 4, 7, 10, 13, 14, 15]
    for part in ("ffn_down", "attn_v", "attn_qkv"):
        assert [i for i in range(16) if mixed(f"blk.{i}.{part}.weight", 16, True) == "Q6_K"] == more
    assert (
        mixed("blk.0.attn_q.weight", 16, True) == "Q4_K"
        and mixed("output.weight", 16, False) == "Q6_K"
    )
    assert [mixed("token_embd.weight", 16, tied) for tied in (True, False)] == ["Q6_K", "Q4_K"]


def test_the_modelfile_holds_the_turns_and_the_stop(mistral, tmp_path, here):
    text = (
        exporting.export(mistral, "gguf", tmp_path / "out", type="q8_0") / "Modelfile"
    ).read_text()
    assert text.splitlines()[:2] == ["# ollama create run -f Modelfile", "FROM ./model.gguf"]
    assert '{{ if eq .Role "user" }}<|user|>\n{{ .Content }}<|end|>\n<|assistant|>\n' in text
    assert 'PARAMETER stop "<|end|>"' in text
