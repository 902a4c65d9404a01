"""Adapters of PEFT and of mlx-lm, bases of transformers and of MLX, each way: the same function comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.engines import SMALL, batches, history, learnable, settings
from helpers.models import mxfp4, save_base
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lorakit.cli import main
from lorakit.common.errors import LorakitError
from lorakit.engines import mlx as engines
from lorakit.engines.mlx import adapters, bases

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

GPT_OSS = {
    **SMALL,
    "sliding_window": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
IDS = np.random.default_rng(0).integers(0, 250, (1, 20))


def torch_logits(folder, adapter=None):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


def mlx_logits(folder, adapter=None):
    """By mlx-lm alone, where it can read the base; nothing of lorakit."""
    from mlx_lm import utils

    model, _ = utils.load_model(folder)
    if adapter:
        utils.load_adapters(model, str(adapter))
    model.eval()
    return np.array(model(mx.array(IDS)).astype(mx.float32))


def tensors(folder):
    return load_file(folder / "model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def peft_adapter(base, folder, **changes):
    """An adapter that PEFT itself has made and saved, both matrices away from zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            **{
                "r": 4,
                "lora_alpha": 12,
                "target_modules": ["q_proj", "down_proj"],
                "task_type": "CAUSAL_LM",
                **changes,
            }
        ),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mlx_base(base, tmp_path_factory):
    return bases.base_to_mlx(base, tmp_path_factory.mktemp("mlx") / "base")


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("gpt_oss"), AutoConfig.for_model("gpt_oss", **GPT_OSS))


# Adapters


ALL = [
    *(f"mlp.{name}_proj" for name in ("down", "gate", "up")),
    *(f"self_attn.{name}_proj" for name in ("k", "o", "q", "v")),
]


@pytest.mark.parametrize(
    ("changes", "keys", "layers"),
    [
        ({}, ["mlp.down_proj", "self_attn.q_proj"], 2),
        ({"use_rslora": True, "target_modules": "all-linear"}, ALL, 2),
        ({"target_modules": r".*layers\.1\..*v_proj"}, ["model.layers.1.self_attn.v_proj"], 1),
    ],
    ids=["two kinds", "all, rslora", "one layer"],
)
def test_pefts_adapter_in_mlx_lm_and_back(base, mlx_base, tmp_path, changes, keys, layers):
    source = peft_adapter(base, tmp_path / "peft", **changes)
    there = adapters.adapter_to_mlx(source, tmp_path / "there")
    said = json.loads((there / "adapter_config.json").read_text())
    scale = 12 / 2 if changes.get("use_rslora") else 12 / 4
    assert said["lora_parameters"] == {"rank": 4, "scale": scale, "keys": keys, "dropout": 0.0}
    assert said["num_layers"] == layers
    expected, without = torch_logits(base, source), torch_logits(base)
    np.testing.assert_allclose(mlx_logits(mlx_base, there), expected, atol=1e-3)
    assert np.abs(expected - without).max() > 0.1  # the adapter does something
    back = adapters.adapter_to_peft(there, tmp_path / "back")
    assert same(
        load_file(source / "adapter_model.safetensors"),
        load_file(back / "adapter_model.safetensors"),
    )
    np.testing.assert_allclose(torch_logits(base, back), expected, atol=1e-5)


def test_an_adapter_that_mlx_lm_has_trained_goes_to_peft(base, mlx_base, tmp_path):
    from mlx.optimizers import Adam
    from mlx_lm import utils
    from mlx_lm.tuner import TrainingArgs, linear_to_lora_layers, train

    model, _ = utils.load_model(mlx_base)
    model.freeze()
    given = {"rank": 4, "scale": 5.0, "dropout": 0.0, "keys": ["self_attn.v_proj"]}
    linear_to_lora_layers(model, 1, given)
    folder = tmp_path / "mlx"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": given})
    )
    train(
        model,
        Adam(1e-2),
        [(r["ids"], 0) for r in learnable(8)],
        args=TrainingArgs(
            batch_size=4,
            iters=3,
            steps_per_report=10**6,
            adapter_file=folder / "adapters.safetensors",
        ),
    )
    back = adapters.adapter_to_peft(folder, tmp_path / "peft", base)
    expected = mlx_logits(mlx_base, folder)
    np.testing.assert_allclose(torch_logits(base, back), expected, atol=1e-3)
    assert np.abs(expected - mlx_logits(mlx_base)).max() > 1e-2
    engine = engines.load(settings(base, engine="mlx", rank=4), adapter=back)
    assert list(engine.layers) == ["model.layers.1.self_attn.v_proj"]


def test_what_the_engine_saves_runs_in_mlx_lm(base, mlx_base, tmp_path):
    engine = engines.load(settings(base, engine="mlx", rank=4))
    history(engine, batches(learnable(16), engine, updates=3))
    engine.save(tmp_path / "adapter")
    there = adapters.adapter_to_mlx(tmp_path / "adapter", tmp_path / "there")
    np.testing.assert_allclose(
        mlx_logits(mlx_base, there), torch_logits(base, tmp_path / "adapter"), atol=1e-3
    )


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_variants_without_a_counterpart_are_refused(base, tmp_path):
    plain = peft_adapter(base, tmp_path / "plain")
    with pytest.raises(LorakitError, match="uses use_dora, which has no counterpart"):
        adapters.adapter_to_mlx(
            peft_adapter(base, tmp_path / "dora", use_dora=True), tmp_path / "out"
        )
    with pytest.raises(LorakitError, match="uses alpha_pattern"):
        adapters.adapter_to_mlx(edited(plain, alpha_pattern={"q_proj": 3}), tmp_path / "out")
    with pytest.raises(LorakitError, match="IA3"):
        adapters.adapter_to_mlx(edited(plain, alpha_pattern={}, peft_type="IA3"), tmp_path / "out")
    there = adapters.adapter_to_mlx(edited(plain, peft_type="LORA"), tmp_path / "there")
    with pytest.raises(LorakitError, match="fine_tune_type='full'"):
        adapters.adapter_to_peft(edited(there, fine_tune_type="full"), tmp_path / "out")
    with pytest.raises(
        LorakitError, match=r"it needs adapter_config.json and adapters.safetensors"
    ):
        adapters.adapter_to_peft(plain, tmp_path / "out")
    content = load_file(plain / "adapter_model.safetensors")
    content.pop(next(n for n in content if "lora_B" in n))
    save_file(content, plain / "adapter_model.safetensors")
    with pytest.raises(LorakitError, match="has one of two tensors"):
        adapters.adapter_to_mlx(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Bases


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_oss"])
def test_a_base_in_mlx_and_back(tmp_path, kind):
    """Tensor by tensor the same; mlx-lm alone reads what stands in between, and answers alike."""
    extra = {
        "gemma3_text": {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "gpt_oss": {**GPT_OSS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    }.get(kind, {})
    base = save_base(tmp_path / "base", AutoConfig.for_model(kind, **{**SMALL, **extra}))
    there = bases.base_to_mlx(base, tmp_path / "there")
    np.testing.assert_allclose(mlx_logits(there), torch_logits(base), atol=1e-3)
    back = bases.base_to_transformers(str(there), tmp_path / "back")
    assert same(tensors(tmp_path / "base"), tensors(back))
    np.testing.assert_array_equal(torch_logits(back), torch_logits(base))


def test_a_quantized_base_and_back(base, tmp_path):
    """4 bits: transformers computes what MLX computed; a run on it is one that quantizes at loading."""
    there = bases.base_to_mlx(base, tmp_path / "there", four_bit=True)
    said = json.loads((there / "config.json").read_text())["quantization"]
    assert said == {"group_size": 64, "bits": 4, "mode": "affine"}
    sizes = [sum(v.nbytes for v in tensors(Path(folder)).values()) for folder in (there, base)]
    assert sizes[0] < 0.2 * sizes[1]  # of fp32: 5 bits a weight, scales and offsets included
    back = bases.base_to_transformers(str(there), tmp_path / "back")
    expected = mlx_logits(there)
    np.testing.assert_allclose(torch_logits(back), expected, atol=1e-3)
    assert np.abs(expected - torch_logits(base)).max() > 0.1  # 4 bits are not the base
    run = settings(base, engine="mlx")
    ready, now = (
        engines.load(run.with_(model=str(there))),
        engines.load(run.with_(quantization="affine4")),
    )
    lines = [history(engine, batches(learnable(80), engine, updates=8)) for engine in (ready, now)]
    assert [x["loss"] for x in lines[0]] == [x["loss"] for x in lines[1]]
    assert lines[0][-1]["loss"] < lines[0][0]["loss"]
    again = engines.load(run.with_(model=str(there), quantization="affine4"))
    assert again.notes["quantization"] == (
        "none",
        "its weights are stored in 4 bits (affine, groups of 64) already",
    )
    assert again.fingerprint().keys() == ready.fingerprint().keys()
    with pytest.raises(LorakitError, match="quantized already"):
        bases.base_to_mlx(str(there), tmp_path / "again", four_bit=True)


def test_gpt_oss_has_exact_positions(gpt_oss):
    """Its YaRN says `truncate: false`, which mlx-lm rounds away: without the cure the logits are others."""
    model, _ = bases.read_base(Path(gpt_oss), AutoConfig.from_pretrained(gpt_oss))
    found = np.array(model(mx.array(IDS)))
    np.testing.assert_allclose(found, torch_logits(gpt_oss), atol=1e-3)
    rounded = model.model.layers[0].self_attn.rope
    from mlx_lm.models.rope_utils import YarnRoPE

    plain = YarnRoPE(
        dims=rounded.dims, base=150000.0, scaling_factor=32.0, beta_fast=32.0, beta_slow=1.0
    )
    assert np.abs(np.array(plain._freqs) / np.array(rounded._freqs) - 1).max() > 0.05


def test_gpt_oss_in_mxfp4_is_what_transformers_reads_in_it(gpt_oss, tmp_path):
    """Loaded as it is, 4 bits in memory; trained; and converted to plain weights."""
    import mlx.nn as nn

    packed, plain = mxfp4(gpt_oss, tmp_path)
    run = settings(str(packed), engine="mlx", max_length=64, target_modules=["q_proj", "v_proj"])
    engine = engines.load(run)
    modes = {m.mode for _, m in engine.model.named_modules() if hasattr(m, "mode")}
    assert modes == {"mxfp4"} and not isinstance(engine.model.lm_head, nn.QuantizedLinear)
    with engine._holding(engine.trained):
        found = np.array(engine.model(mx.array(IDS)))
    np.testing.assert_allclose(found, torch_logits(plain), atol=1e-3)
    lines = history(engine, batches(learnable(80), engine, updates=8))
    assert lines[-1]["loss"] < lines[0]["loss"]
    back = bases.base_to_transformers(str(packed), tmp_path / "back")
    np.testing.assert_allclose(torch_logits(back), torch_logits(plain), atol=1e-2)


def test_the_command_sees_what_it_is_given(base, tmp_path, capsys):
    source = peft_adapter(base, tmp_path / "peft")
    for given, made, file in (
        (source, "a", "adapters.safetensors"),
        (tmp_path / "a", "b", "adapter_model.safetensors"),
        (base, "c", "config.json"),
        (tmp_path / "c", "d", "config.json"),
    ):
        assert main(["convert", str(given), str(tmp_path / made)]) == 0
        assert (tmp_path / made / file).is_file() and capsys.readouterr().out.strip() == str(
            tmp_path / made
        )
    assert same(tensors(Path(base)), tensors(tmp_path / "d"))
    assert same(
        load_file(source / "adapter_model.safetensors"),
        load_file(tmp_path / "b/adapter_model.safetensors"),
    )
    assert main(["convert", base, str(tmp_path / "e"), "--four-bit"]) == 0
    assert "quantization" in json.loads((tmp_path / "e" / "config.json").read_text())
    assert main(["convert", str(source), str(tmp_path / "f"), "--four-bit"]) == 1
    assert "is an adapter: only a base is made of 4 bits" in capsys.readouterr().err


def test_a_base_without_a_counterpart_is_refused(tmp_path):
    base = save_base(
        tmp_path / "base", AutoConfig.for_model("opt", **SMALL, ffn_dim=64, word_embed_proj_dim=64)
    )
    with pytest.raises(LorakitError, match="Model type opt not supported"):
        bases.base_to_mlx(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
