"""gpt-oss, shrunken: adapters on attention in both engines, on the experts in torch; trained, saved, asked again."""

import numpy as np
import pytest
import torch
from helpers.engines import batches, gradients, history, learnable, noise, shaken
from helpers.engines import settings as plain_settings
from helpers.models import distance, mxfp4, save_base
from helpers.runs import tiny_run
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import lorakit
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.engines.torch import load
from lorakit.models import spec
from lorakit.planning import memory
from lorakit.tasks.batches import collate

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
SPEC = spec.known()["gpt-oss-20b"]


def settings(base, **changes):
    return plain_settings(base, **{"rank": 4, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """As rehearsal shrinks it, with the byte tokenizer's 300 ids: 2 layers, 4 experts, 2 of them a token."""
    small = spec.shrunk(SPEC.config, SPEC.small)
    config = AutoConfig.for_model(
        **{
            **small,
            "vocab_size": 300,
            "max_position_embeddings": 512,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "pad_token_id": 258,
        }
    )
    return save_base(tmp_path_factory.mktemp("base"), config)


@pytest.fixture(scope="module")
def experts(base):
    return shaken(load(settings(base, target_modules=["q_proj", "v_proj", *EXPERTS])))


def test_packs_give_the_curve_of_eager_attention(base):
    """Also past the sliding window of 64."""
    rows, curves = noise(*[20, 90, 5, 70] * 10), []
    for packing in (True, False):
        engine = load(settings(base, packing=packing))
        if packing:
            assert engine.notes["packing"] == (
                True,
                "packed: exact attention per document (tested at loading: documents do not influence each other)",
            )
        else:
            engine._bare().set_attn_implementation("eager")
        curves.append(
            [line["loss"] for line in history(engine, batches(rows, engine, updates=20, size=4))]
        )
    np.testing.assert_allclose(*curves, rtol=1e-5)
    assert curves[0][-1] < curves[0][0] - 0.03


def test_adapters_on_experts_are_peft_s_own(experts):
    """Every expert has a pair of rank r: A (r E, in), B (out, r E)."""
    shapes = {
        n.removeprefix("base_model.model.model.layers.0."): w.shape
        for n, w in experts.weights().items()
        if ".layers.0.mlp" in n
    }
    assert shapes == {  # PEFT wraps the module once for each of its stacks
        "mlp.experts.base_layer.lora_A.default.weight": (16, 96),
        "mlp.experts.base_layer.lora_B.default.weight": (192, 16),
        "mlp.experts.lora_A.default.weight": (16, 96),
        "mlp.experts.lora_B.default.weight": (96, 16),
    }
    assert (
        "4 left to PEFT" in experts.notes["kernels"][0]
        and "4 adapted layers" in experts.notes["kernels"][0]
    )


def test_adapters_on_experts_compute_what_is_written_out(base, experts, tmp_path):
    """A plain model whose stacks hold W + s A_e B_e, with q and v merged: the same loss."""
    scale, weights = experts.model.peft_config["default"].lora_alpha / 4, experts.weights()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for number, layer in enumerate(plain.model.layers):

        def pair(name, number=number):
            return (
                torch.from_numpy(
                    weights[
                        f"base_model.model.model.layers.{number}.{name}.lora_{k}.default.weight"
                    ]
                )
                for k in "AB"
            )

        for name in ("q_proj", "v_proj"):
            a, b = pair(f"self_attn.{name}")
            getattr(layer.self_attn, name).weight.data += scale * b @ a
        for name, place in (
            ("gate_up_proj", "mlp.experts.base_layer"),
            ("down_proj", "mlp.experts"),
        ):
            a, b = pair(place)
            a, b = a.view(4, 4, -1), b.view(len(b), 4, 4)  # (E, r, in), (out, r, E)
            getattr(layer.mlp.experts, name).data += scale * torch.einsum("eri,ore->eio", a, b)
    row = noise(40)[0]
    with torch.no_grad():
        logits = plain(torch.tensor([row["ids"]])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(row["ids"][1:]), reduction="sum"
    )
    assert experts.loss(collate([row], [0]))[0] == pytest.approx(float(expected), rel=1e-5)


def test_the_gradients_are_those_of_peft_without_our_kernels(base, experts):
    plain = load(settings(base, target_modules=["q_proj", "v_proj", *EXPERTS]))
    plain.set_weights(experts.weights())
    for module in plain.model.modules():  # what `kernels.install` has put there
        vars(module).pop("forward", None)
    rows = noise(30, 12)
    assert distance(gradients(experts, rows), gradients(plain, rows)) < 1e-5
    again = load(settings(base, target_modules=EXPERTS, gradient_checkpointing=True))
    named = {n: w for n, w in experts.weights().items() if ".experts." in n}
    again.set_weights(named)
    other = load(settings(base, target_modules=EXPERTS))
    other.set_weights(named)
    assert distance(gradients(again, rows), gradients(other, rows)) < 1e-5


def test_updates_move_adapters_of_experts_and_nothing_frozen(base):
    engine = load(settings(base, target_modules=EXPERTS))
    before, rows = engine.fingerprint(), learnable(40)
    lines = history(engine, batches(rows, engine, updates=6))
    after = engine.fingerprint()
    assert {n for n in after if after[n] != before[n]} == set(engine.weights())
    assert {n.split(".lora_")[0].split("layers.")[1][2:] for n in engine.weights()} == {
        "mlp.experts",
        "mlp.experts.base_layer",
    }
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "targets"),
    [
        ("torch", ["q_proj", "v_proj", *EXPERTS]),
        pytest.param("torch", ["q_proj", "v_proj"], marks=pytest.mark.slow),
        pytest.param("mlx", ["q_proj", "v_proj"], marks=pytest.mark.slow),
    ],
    ids=["torch, experts", "torch, attention", "mlx, attention"],
)
def test_trained_saved_and_asked_again_in_a_fresh_process(
    base, rows_file, tmp_path, engine, targets
):
    pytest.importorskip("mlx_lm" if engine == "mlx" else "torch")
    run = tiny_run(
        base,
        rows_file,
        tmp_path,
        engine=engine,
        target_modules=targets,
        dropout=0.0,
        learning_rate=5e-3,
        max_updates=6,
        test_fraction=0.05,
        validate_every=0,
    )
    folder = lorakit.finetune(run)
    record = folder.record
    assert (
        record["status"] == "done"
        and "a fresh process repeats 4 answers" in record["proof"]["reloaded"]
    )
    lines, _ = folder.history()
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    names = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(".experts." in n for n in names) == ("experts.down_proj" in targets)
    if targets[2:]:  # plain PEFT loads them
        from peft import PeftModel

        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder / "adapter"
        )
        again = registry.load("engines", "torch").load(
            run.with_(
                precision="fp32",
                micro_batch_tokens=256,
                gradient_checkpointing=False,
                micro_batch_size=2,
            ),
            adapter=folder / "adapter",
        )
        for name, tensor in again.weights().items():
            np.testing.assert_array_equal(
                tensor, dict(plain.named_parameters())[name].detach().numpy()
            )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"target_modules": EXPERTS, "dropout": 0.1},
            "the adapter of stacked experts has neither; leave those out",
        ),
        (
            {"target_modules": EXPERTS, "use_dora": True},
            "dropout=0, use_dora=True: the adapter of stacked experts",
        ),
        ({"target_modules": ["experts.up_proj"]}, "has no layer 'experts.up_proj'"),
    ],
)
def test_refusals(base, changes, words):
    with pytest.raises(LorakitError, match=words):
        load(settings(base, **changes))


def test_mlx_leaves_experts_to_another_engine(base):
    pytest.importorskip("mlx_lm")
    from lorakit.engines import mlx

    with pytest.raises(LorakitError, match=r"has no layer 'experts.gate_up_proj'; it has .*q_proj"):
        mlx.load(settings(base, engine="mlx", target_modules=EXPERTS))


def test_experts_in_mxfp4_take_what_their_files_do(base, tmp_path):
    """Counted before training, held by the engine."""
    utils = pytest.importorskip("mlx.utils")
    packed, _ = mxfp4(base, tmp_path)
    run = settings(str(packed), engine="mlx", target_modules=["q_proj", "v_proj"])
    engine = registry.load("engines", "mlx").load(run)
    held = sum(
        t.nbytes for n, t in utils.tree_flatten(engine.model.parameters()) if ".lora_" not in n
    )
    assert engine.notes["quantization"] == (
        "none",
        "its weights are stored in 4 bits (mxfp4, groups of 32) already",
    )
    assert (
        memory.memory(run)["weights"]
        == (packed / "model.safetensors").stat().st_size
        == pytest.approx(held, rel=0.01)
    )
    whole = memory.memory(settings(base, engine="mlx"))["weights"]
    experts = memory.shape(run).experts
    assert whole - held == pytest.approx(experts * (32 - 4.25) / 8, rel=0.001)
