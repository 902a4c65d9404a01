"""Quantization-aware training: a run computes with the very weights that its export writes, and says so."""

import contextlib
import importlib

import numpy as np
import pytest
import torch
from helpers.kernels import adapted, same, step
from helpers.runs import tiny_run
from helpers.tuned import content, shrunken, tuned_run
from safetensors.numpy import load_file

import lorakit
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.engines import torch as engines
from lorakit.engines.torch import kernels
from lorakit.engines.torch.kernels import adapted as merging
from lorakit.engines.torch.kernels import lora, rounding
from lorakit.engines.torch.kernels.device import flush_denormals
from lorakit.engines.torch.kernels.rounding import rounded
from lorakit.machine.hardware import facts
from lorakit.planning import choose, memory
from lorakit.run import Run

exporting = importlib.import_module("lorakit.exporting.round_trip")
FORMS = sorted(rounding.FORMS)


@pytest.fixture(scope="module")
def aware(tmp_path_factory):
    """The folder of a run that was trained for q4_0. Only to be read."""
    folder = tmp_path_factory.mktemp("aware")
    return tuned_run(
        shrunken("mistral", folder / "base"), folder, fake_quantization="q4_0", max_updates=40
    ).path


# One matrix


def read_back(weight, form):
    """(out, in) as the exporter packs it and the format's own package reads it."""
    if form == "affine4":
        import mlx.core as mx

        group = 64 if weight.shape[1] % 64 == 0 else 32
        packed, scale, offset = mx.quantize(
            mx.array(weight.astype(np.float16)), group_size=group, bits=4
        )
        return np.array(
            mx.dequantize(
                packed,
                scale.astype(mx.float32),
                offset.astype(mx.float32),
                group_size=group,
                bits=4,
            )
        )
    import gguf

    from lorakit.exporting.gguf.quantization import packed

    kind = gguf.GGMLQuantizationType[form.upper()]
    return gguf.quants.dequantize(packed(weight, kind), kind)


@pytest.mark.parametrize("width", [192, 96])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1, 300])
@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_rounded_as_it_is_packed(form, scale, width):
    """Nothing but zeros, ties of either sign, halves between two steps, all alike; also where a CPU drops denormals."""
    weight = np.random.default_rng(0).normal(size=(400, width)).astype(np.float32)
    weight[0], weight[4] = 0, 1
    weight[1, :32], weight[2] = -weight[1, 32:64], np.round(2 * weight[2]) / 2
    weight[3, 5] = -weight[3].max()
    weight *= np.float32(scale)
    expected = read_back(weight, form)
    assert (
        np.array_equal(rounded(torch.from_numpy(weight), form), expected)
        and len(np.unique(expected)) > 50
    )
    with flush_denormals():
        assert np.array_equal(rounded(torch.from_numpy(weight), form), expected)


@pytest.mark.parametrize(
    "form, expected",
    [
        ("q4_0", [-8.0, 7.0, 0.0, 1.0, 4.0, -1.0]),  # steps of 1: 8 has none, and halves go up
        ("q8_0", [-8.0, 8.0, 0.0, 0.504, 3.527, -0.630]),  # steps of 8/127
        ("affine4", [-8.0, 8.0, 0.0, 0.0, 3.43, -1.14]),
    ],
)  # steps of 8/7 down from 8
def test_a_row_by_hand(form, expected):
    row = torch.tensor([[-8.0, 8.0, 0.0, 0.5, 3.5, -0.6] + [0.0] * 26])
    assert rounded(row, form)[0, :6].tolist() == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_nothing_divides_keeps_16_bits(form):
    row = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(row, form), row.half().float())


# A model


def plain_form(model, form):
    """Every adapted layer of PEFT's as torch's own gradients have it, the sum's rounding left out of them."""
    for module in model.modules():
        if not hasattr(module, "lora_A"):
            continue

        def forward(x, module=module):
            base, name = module.get_base_layer(), module.active_adapter[0]
            total = (
                base.weight
                + module.lora_B[name].weight @ module.lora_A[name].weight * module.scaling[name]
            )
            total = total + (rounded(total, form) - total).detach()
            return torch.nn.functional.linear(x, total, base.bias)

        module.forward = forward


@pytest.mark.parametrize("name", ["llama-3.2-1b", "gemma-3-270m", "phi-3-mini", "opt-125m"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_go_through_as_if_nothing_were_rounded(form, name):
    """Joint q, k, v, gated MLP and single layers, with and without recomputing."""
    found = []
    for way in (lambda m: kernels.install(m, form), lambda m: plain_form(m, form)):
        model = adapted(name)
        if not found:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
            model.enable_input_require_grads()
        else:
            rounding.settle(model, form)
        way(model)
        found.append(step(model))
    same(*found)
    model = adapted(name)
    kernels.install(model)
    assert abs(step(model)[0] - found[0][0]) > (
        1e-5 if form == "q8_0" else 1e-3
    )  # rounding is not nothing


def test_it_computes_with_the_weights_that_stand_in_the_file(aware):
    """All matrices of the exported file, embeddings and head too, are those of the model that is scored."""
    import gguf

    from lorakit.exporting.gguf.families import FAMILIES
    from lorakit.exporting.gguf.files import write
    from lorakit.exporting.gguf.tensors import interleave, rotated

    found = exporting.source(aware)
    path = aware / "rows" / "model.gguf"
    write(found.merged("fp32"), found, path, "q4_0")
    stored = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type)
        for t in gguf.GGUFReader(path).tensors
        if len(t.shape) > 1
    }
    engine = engines.load(found.run, adapter=found.saved)
    bare = engine.model.get_base_model()
    config = bare.config
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[FAMILIES["mistral"].architecture], config.num_hidden_layers
    )
    seen = set()
    for name, module in bare.named_modules():
        if hasattr(module, "lora_A"):
            layer = lora.adapted(module, "q4_0")
            weight = layer.merged(*layer.tensors, torch.float32)
        elif (
            isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
            and ".lora_" not in name
            and not name.endswith("base_layer")
        ):
            weight = module.weight
        else:
            continue
        weight = weight.detach().numpy()
        if heads := rotated(f"{name}.weight", config):
            weight = interleave(weight, heads)
        known = f"{names.get_name(name)}.weight"
        assert np.array_equal(weight, stored[known]), known
        seen.add(known)
    assert seen == set(stored) and len(seen) == 16


def test_an_answer_makes_each_weight_once(aware, monkeypatch):
    found = exporting.source(aware)
    engine, calls = engines.load(found.run, adapter=found.saved), []
    monkeypatch.setattr(
        merging, "rounded", lambda weight, form: calls.append(form) or rounded(weight, form)
    )
    prompt = found.rows[0]["ids"][:12].tolist()
    kept = engine.generate([prompt], 6, [])
    assert calls == ["q4_0"] * 14
    monkeypatch.setattr(lora, "standing", contextlib.nullcontext)
    assert engine.generate([prompt], 6, []) == kept and len(calls) == 14 * 7


# A run


def test_its_export_is_judged_by_the_weights_it_was_trained_with(aware, tmp_path, here):
    """llama.cpp differs by the 8 bits of its activations alone; unrounded it is another model, and that is said."""
    found = content(exporting.export(aware, "gguf", tmp_path / "q4", type="q4_0"))
    assert found["divergence"]["bound"] == 0.1 == found["perplexity"]["bound"]
    assert found["agreement"]["tokens"] > 0.95 and abs(found["perplexity"]["added_nats"]) < 0.02
    plain = content(exporting.export(aware, "merged", tmp_path / "merged", type="fp32"))
    assert plain["agreement"]["identical"] == 24
    change = plain["perplexity"]["before"] / found["perplexity"]["before"]
    assert abs(np.log(change)) > 1e-3
    (note,) = plain["notes"]
    assert note == "tuned with its weights as q4_0 holds them"


@pytest.mark.slow
def test_mlx_runs_what_was_trained_for_it(tmp_path, here):
    run = tuned_run(
        shrunken("llama", tmp_path / "base"), tmp_path, fake_quantization="affine4", max_updates=20
    ).path
    found = content(
        exporting.export(run, registry.names("export")[3], tmp_path / "out", type="4bit")
    )
    assert found["agreement"]["identical"] == 24
    assert abs(found["perplexity"]["added_nats"]) < 1e-3


@pytest.mark.slow
def test_a_cut_run_ends_with_the_same_adapter_and_a_fresh_process_repeats_it(
    base, rows_file, tmp_path, quick, monkeypatch
):
    changes = {
        "fake_quantization": "q4_0",
        "dropout": 0.0,
        "max_updates": 4,
        "checkpoint_every": 2,
        "validate_every": 0,
    }
    whole = lorakit.finetune(tiny_run(base, rows_file, tmp_path / "whole", **changes))
    cut = tiny_run(base, rows_file, tmp_path / "cut", **changes)
    lorakit.finetune(cut.with_(max_minutes=1e-9))
    assert lorakit.Folder(cut.folder).record["status"] == "stopped"
    monkeypatch.undo()  # this one is repeated by a fresh process
    ended = lorakit.finetune(cut)
    one, two = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (whole, ended))
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    record = ended.record
    assert record["status"] == "done" and record["proof"]["reloaded"].endswith(
        "(largest difference 0.0e+00 nats)"
    )
    assert record["method"] == "LoRA, quantization-aware (q4_0)"
    assert (
        record["choices"]["fake_quantization"][0] == "q4_0" and "quantization" in record["choices"]
    )
    assert "quantization-aware (q4_0)" in (ended / "report.md").read_text()
    with pytest.raises(LorakitError, match="fake_quantization: 'q4_0' there, 'none' now"):
        lorakit.finetune(cut.with_(fake_quantization="none"))


def test_what_it_is_not_for(base, tmp_path):
    run = Run(
        data="-",
        model=base,
        fake_quantization="q4_0",
        max_length=128,
        engine=registry.names("engines")[0],
    )
    with pytest.raises(
        LorakitError, match="no engine can serve here: .*it has no fake_quantization"
    ):
        choose.resolve(run, facts(tmp_path))
    resolved, choices = choose.resolve(run.with_(engine="auto"), facts(tmp_path))
    assert (
        resolved.quantization == "none"
        and "the export rounds unquantized weights" in choices["quantization"][1]
    )
    experts = shrunken("gpt_oss", tmp_path / "experts")
    with pytest.raises(
        LorakitError, match="fake_quantization='q4_0': only language models without stacked experts"
    ):
        engines.load(resolved.with_(model=experts))
    tied = shrunken("llama", tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(LorakitError, match="the head's weights are the embeddings'"):
        engines.load(resolved.with_(model=tied, target_modules=["q_proj", "lm_head"]))


def test_the_plan_counts_the_weights_kept_while_it_answers(base):
    run = Run(
        data="-",
        model=base,
        precision="fp32",
        quantization="none",
        max_length=8,
        micro_batch_size=1,
        micro_batch_tokens=8,
    )
    of = memory.shape(run)
    assert (
        memory.memory(run.with_(fake_quantization="q4_0"))["working"]
        >= 4 * of.linear
        > memory.memory(run)["working"]
    )
