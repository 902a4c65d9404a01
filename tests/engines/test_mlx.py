"""The MLX engine beside the torch engine: one curve, exact rows, the same answers; what is saved, plain PEFT loads."""

import gc
import math
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.engines import SMALL, batches, history, learnable, noise, settings
from helpers.models import distance, save_base
from helpers.runs import tiny_run
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.engines import mlx as engines
from lorakit.engines.torch import load as load_torch
from lorakit.machine import distributed
from lorakit.machine.hardware import Facts
from lorakit.models import base_model as bases
from lorakit.models import spec as models
from lorakit.models.spec import Spec
from lorakit.planning import choose
from lorakit.runs.folder import Folder
from lorakit.tasks.batches import Batch, collate
from lorakit.training import checkpoint
from lorakit.training.loop import State

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")
tree_flatten = pytest.importorskip("mlx.utils").tree_flatten
mlx_loss, mlx_rows, generation, passes = (
    pytest.importorskip(f"lorakit.engines.mlx.{name}")
    for name in ("loss", "rows", "generation", "passes")
)

# Small forms of what people tune; windows shorter than the rows.
ARCHITECTURES = {
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": {},
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.1] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 256,
        },
        "original_max_position_embeddings": 256,
    },
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": 512},  # capped logits
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def given(base, **changes):
    return settings(base, **{"engine": "mlx", **changes})


def load(base, **changes):
    return engines.load(given(base, **changes))


def random_weights(engine, seed=0):
    """Adapters away from their start, where B is zero."""
    rng = np.random.default_rng(seed)
    return {
        n: w + 0.1 * rng.standard_normal(w.shape).astype(np.float32)
        for n, w in sorted(engine.weights().items())
    }


def shaken(engine):
    engine.set_weights(random_weights(engine))
    return engine


def gradients(engine, rows):
    """All of them, end to end."""
    engine.gradients = None
    engine.backward(collate(rows, range(len(rows))))
    return np.concatenate([np.array(engine.gradients[n]).ravel() for n in sorted(engine.gradients)])


def torch_gradients(engine, rows):
    for parameter in engine.trained.values():
        parameter.grad = None
    engine.backward(collate(rows, range(len(rows))))
    return (
        np.concatenate([engine.trained[n].grad.numpy().ravel() for n in sorted(engine.trained)])
        * engine.optimization.unit
    )


@pytest.fixture(scope="module")
def rows():
    return learnable(240)


@pytest.fixture(scope="module")
def packed(base):
    return shaken(load(base))


# One curve


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.3, "use_rslora": True, "max_grad_norm": 0.1}],
    ids=["plain", "decay, rslora, clipping"],
)
def test_torch_and_mlx_draw_one_curve(base, rows, changes):
    theirs, ours = load_torch(settings(base, **changes)), load(base, **changes)
    assert ours.packing and theirs.packing
    ours.set_weights(theirs.weights())
    lines = [history(e, batches(rows, e)) for e in (theirs, ours)]
    losses = [[line["loss"] for line in each] for each in lines]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[0][0] - losses[0][-1] > 1
    norms = [[line["grad_norm"] for line in each] for each in lines]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert [x["target_tokens"] for x in lines[1]] == [x["target_tokens"] for x in lines[0]]
    for name, value in theirs.weights().items():
        np.testing.assert_allclose(ours.weights()[name], value, atol=1e-3)
    assert (
        ours.targets_trained == theirs.targets_trained == sum(x["target_tokens"] for x in lines[1])
    )


@pytest.fixture(scope="module")
def curve(base, rows):
    engine = load(base)
    return [line["loss"] for line in history(engine, batches(rows, engine))]


@pytest.mark.parametrize(("micro", "packing"), [(8, False), (4, True), (2, True), (2, False)])
def test_one_curve_whatever_the_pieces(base, rows, curve, micro, packing):
    engine = load(base, packing=packing)
    assert engine.packing is packing
    pieces = batches(rows, engine, micro)
    assert {len(pieces[u]) for u in range(30)} == {8 // micro}
    assert [line["loss"] for line in history(engine, pieces)] == pytest.approx(curve, abs=2e-5)


def test_adapters_begin_as_peft_begins_them(base):
    """A uniform within 1/sqrt(in) (Kaiming with a = sqrt(5)), B zero, another A for another seed."""
    one, two = load(base), load(base, seed=1)
    assert one.weights().keys() == load_torch(settings(base)).weights().keys()
    for name, tensor in one.weights().items():
        bound = 1 / math.sqrt(tensor.shape[1])
        if "lora_A" in name:
            assert (
                0.9 * bound < np.abs(tensor).max() <= bound
                and (tensor != two.weights()[name]).any()
            )
        else:
            assert not tensor.any()


# Rows and masks


def batch_of(*lengths):
    targets = np.concatenate([np.arange(n) > 0 for n in lengths])
    return Batch(
        np.arange(1, sum(lengths) + 1), targets, np.array(lengths), np.arange(len(lengths))
    )


def test_documents_in_rows(monkeypatch):
    monkeypatch.setattr(mlx_rows, "STEP", 4)
    rows = mlx_rows.Rows.of(batch_of(3, 6, 2), packed=True, pad_id=0)
    assert rows.ids.tolist() == [[4, 5, 6, 7, 8, 9, 1, 2, 3, 10, 11, 0]]
    assert rows.document.tolist() == [[1] * 6 + [0] * 3 + [2] * 2 + [-1]]
    assert rows.place.tolist() == [6, 7, 8, 0, 1, 2, 3, 4, 5, 9, 10]
    two = mlx_rows.Rows.of(batch_of(3, 6, 2, 5), packed=True, pad_id=0)
    assert two.document.tolist() == [[1] * 6 + [2] * 2, [3] * 5 + [0] * 3]
    alone = mlx_rows.Rows.of(batch_of(3, 6, 2), packed=False, pad_id=0)
    assert alone.ids.tolist() == [
        [1, 2, 3, 0, 0, 0, 0, 0],
        [4, 5, 6, 7, 8, 9, 0, 0],
        [10, 11, 0, 0, 0, 0, 0, 0],
    ]
    assert mlx_rows.Rows.of(batch_of(3, 6), packed=False, pad_id=0, positions=7).ids.shape == (2, 7)


def test_short_documents_beside_a_long_one_are_not_padded_to_it():
    rows = mlx_rows.Rows.of(batch_of(1000, *[50] * 20), packed=True, pad_id=0)
    assert rows.ids.shape == (2, 1024)
    together = mlx_rows.Rows.of(batch_of(*[50] * 20), packed=True, pad_id=0)
    assert together.ids.size <= 1.25 * 1000


def test_the_mask_of_two_documents():
    mask = mlx_rows.Isolated(mx.array([[0, 0, 0, 1, 1]])).make_mask(5)
    assert mask[0, 0].astype(mx.int32).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    window = mlx_rows.Isolated(mx.array([[0, 0, 0, 1, 1]])).make_mask(5, window_size=2)
    assert window[0, 0].astype(mx.int32).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_places_answers_and_weights_of_the_targets(base, packed):
    """The token before a target predicts it; what fills the shape up weighs nothing."""
    batch = collate(
        [
            {"ids": [7, 8, 9], "targets": [False, False, True]},
            {"ids": [5, 6], "targets": [True, True]},
        ],
        [0, 1],
    )
    _, _, places, answers, weight = packed.passes.arrays(batch)
    assert (places.tolist()[:2], answers.tolist()[:2]) == ([1, 3], [9, 6])
    assert weight.tolist() == [1, 1] + [0] * 14


def test_a_leak_between_documents_is_found_at_loading(base, monkeypatch):
    monkeypatch.setattr(
        mlx_rows.Isolated,
        "make_mask",
        lambda self, length, **_: mx.tril(mx.ones((length, length))).astype(mx.bool_),
    )
    engine = load(base, compile=True)
    assert engine.notes["compile"] == (False, "MLX compiles whole steps, whatever is asked for")
    assert engine.packing is False and "would see the one before it" in engine.notes["packing"][1]


def test_positions_from_a_table_are_padded(tmp_path):
    """They count from the row's beginning, so a document stands alone in it, and answers are given one by one."""
    base = save_base(
        tmp_path,
        AutoConfig.for_model(
            "gpt_bigcode",
            vocab_size=300,
            n_positions=64,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_inner=128,
            bos_token_id=256,
            eos_token_id=257,
        ),
    )
    changes = {"rank": 4, "max_length": 64}
    theirs, ours, rows = (
        load_torch(settings(base, **changes)),
        load(base, **changes),
        noise(30, 5, 61),
    )
    assert ours.packing is False and ours.notes["packing"][1].startswith(
        "padded: this model's own attention differs"
    )
    theirs.set_weights(random_weights(theirs))
    ours.set_weights(theirs.weights())
    batch = collate(rows, range(3))
    np.testing.assert_allclose(ours.predict(batch), theirs.predict(batch), atol=1e-4, rtol=1e-5)
    prompts = [row["ids"][:20] for row in rows]
    assert ours.generate(prompts, 8, []) == theirs.generate(prompts, 8, [])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_agrees_with_torch(tmp_path, kind):
    """Losses, gradients and greedy answers with the same adapter, packed, rows longer than the window."""
    base = save_base(tmp_path, AutoConfig.for_model(kind, **{**SMALL, **ARCHITECTURES[kind]}))
    changes = {
        "max_length": 128,
        **({"target_modules": ["q_proj", "v_proj"]} if kind == "gpt_oss" else {}),
    }
    theirs, ours, rows = (
        load_torch(settings(base, **changes)),
        load(base, **changes),
        noise(30, 5, 61),
    )
    theirs.set_weights(random_weights(theirs))
    ours.set_weights(random_weights(theirs))
    theirs.set_weights(ours.weights())
    assert ours.packing
    batch = collate(rows, range(3))
    np.testing.assert_allclose(ours.predict(batch), theirs.predict(batch), atol=1e-4, rtol=1e-6)
    assert distance(gradients(ours, rows), torch_gradients(theirs, rows)) < 5e-4
    prompts = [row["ids"] for row in rows]
    answers = ours.generate(prompts, 8, [])
    assert answers == theirs.generate(prompts, 8, [])
    assert [len(a) for a in answers] == [8] * 3
    assert sorted(n.replace(".base_layer", "") for n in ours.fingerprint()) == sorted(
        n.replace(".base_layer", "") for n in ours.parameters()
    )


def test_a_window_that_mlx_lm_lacks_is_refused(tmp_path):
    base = save_base(tmp_path, AutoConfig.for_model("mistral", **SMALL, sliding_window=32))
    with pytest.raises(LorakitError, match="max_length=64 is longer than the window of 32"):
        load(base, max_length=64)
    assert load(base, max_length=32).packing


# Losses, gradients, dropout


def test_cross_entropy_in_pieces_is_that_of_all_logits():
    rng = np.random.default_rng(0)
    head, hidden = (mx.array(rng.standard_normal(s).astype(np.float32)) for s in ((50, 8), (20, 8)))
    answers, weight = mx.array(rng.integers(0, 50, 20)), mx.array([1.0] * 17 + [0.0] * 3)

    def plain(hidden):
        logits = torch.tensor(np.array(hidden @ head.T))
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(np.array(answers)).long(), reduction="none"
        )
        return float((losses * torch.tensor(np.array(weight))).sum())

    def summed(hidden, room):
        return mlx_loss.summed(lambda h: h @ head.T, hidden, answers, weight, 50, room)

    found = [mx.value_and_grad(summed)(hidden, room) for room in (10**6, 150)]
    assert [f[0].item() for f in found] == pytest.approx([plain(hidden)] * 2, rel=1e-5)
    np.testing.assert_allclose(*(np.array(f[1]) for f in found), atol=1e-5)
    assert not np.array(found[0][1])[17:].any()


def test_gradient_checkpointing_changes_no_gradient(base, packed):
    rows = noise(30, 9, 17)
    recomputed = shaken(load(base, gradient_checkpointing=True))
    assert distance(gradients(recomputed, rows), gradients(packed, rows)) < 1e-6
    assert type(recomputed.model.layers[0]) is not type(packed.model.layers[0])
    one = shaken(load(base, gradient_checkpointing=1))
    assert distance(gradients(one, rows), gradients(packed, rows)) < 1e-6
    plain = type(packed.model.layers[0])
    assert [type(layer) is plain for layer in one.model.layers] == [False, True]


def test_dropout_follows_the_seed_of_the_micro_batch(base):
    engine, row = shaken(load(base, dropout=0.3)), noise(40)
    losses = [engine.backward(collate(row, [0], seed=seed))[0] for seed in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]
    assert engine.loss(collate(row, [0])) == engine.loss(collate(row, [0]))
    assert engine.loss(collate(row, [0]))[0] not in losses


def test_an_evaluation_between_leaves_the_gradients_as_they_are(base, packed):
    rows = noise(30, 9)
    alone = gradients(packed, rows)
    packed.gradients = None
    packed.backward(collate(rows[:1], [0]))
    packed.predict(collate(rows, range(2)))
    packed.generate([rows[0]["ids"]], 3, [])
    packed.backward(collate(rows[1:], [0]))
    between = np.concatenate(
        [np.array(packed.gradients[n]).ravel() for n in sorted(packed.gradients)]
    )
    assert distance(between, alone) < 1e-5


def test_padding_is_never_a_target_when_the_end_token_pads(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    engine, other = (shaken(load(b, packing=False)) for b in (str(tmp_path), base))
    assert (engine.passes.pad_id, other.passes.pad_id) == (257, 258)
    rows = learnable(4)
    total, count = engine.backward(collate(rows, range(4)))
    assert count == sum(sum(row["targets"]) for row in rows)
    assert total == pytest.approx(sum(other.loss(collate([r], [0]))[0] for r in rows), rel=1e-5)
    assert distance(gradients(engine, rows), gradients(other, rows)) < 1e-6


def test_a_gradient_that_is_not_finite_is_not_applied_and_the_layer_is_named(base):
    engine = load(base)
    before = engine.weights()
    engine.model.layers[1].mlp.down_proj.base_layer.weight *= math.inf
    batch = collate(noise(9), [0])
    assert not math.isfinite(engine.backward(batch)[0])
    assert engine.update(1e-3, 8)[1] is True
    assert all((engine.weights()[n] == before[n]).all() for n in before)
    assert engine.first_nonfinite_layer([batch]) == "the first layer that overflows is layers.1"


def test_out_of_memory_is_the_same_update_in_less(base, packed):
    """Metal's words, which Linux cannot say by itself, above so many tokens or without recomputing."""
    rows = noise(30, 9, 17)
    engine, whole = shaken(load(base)), gradients(packed, rows)
    real = engine._gradients

    def small(trained, ids, *more):
        if ids.size > 32:
            raise RuntimeError("[metal::malloc] Attempting to allocate 17179869184 bytes")
        return real(trained, ids, *more)

    engine._gradients = small
    assert distance(gradients(engine, rows), whole) < 1e-5
    assert engine.steps == ["at most 30 tokens at a time"]
    engine._gradients = lambda *_: (_ for _ in ()).throw(RuntimeError("Insufficient Memory"))
    assert distance(gradients(engine, rows), whole) < 1e-5
    assert engine.steps[1:] == ["activations recomputed"]
    engine._gradients = lambda *_: (_ for _ in ()).throw(RuntimeError("Insufficient Memory"))
    with pytest.raises(
        LorakitError, match="out of memory with one row of 30 tokens, recomputed; lower max_length"
    ):
        engine.backward(collate(rows[:1], [0]))
    engine._gradients = lambda *_: (_ for _ in ()).throw(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        engine.backward(collate(rows[:1], [0]))


# What moves, what comes back


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantization": "affine4"},
        {"precision": "bf16"},
        {"quantization": "affine4", "precision": "bf16"},
        {"gradient_checkpointing": True},
        {"target_modules": ["v_proj"]},
        {"target_modules": r".*\.1\..*_proj"},
    ],
    ids=lambda c: " ".join(map(str, c.values())) or "lora",
)
def test_updates_move_everything_trained_and_nothing_frozen(base, rows, changes):
    engine = load(base, **changes)
    before = engine.fingerprint()
    updates = 3 if "precision" in changes else 12  # bf16 is slow on a CPU
    lines = history(engine, batches(rows, engine, updates=updates))
    after, trained = engine.fingerprint(), {n for n, (_, on) in engine.parameters().items() if on}
    assert {n for n in after if after[n] != before[n]} == trained == set(engine.weights())
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert all(w.dtype == np.float32 for w in engine.weights().values())
    theirs = load_torch(
        settings(base, **{k: v for k, v in changes.items() if k == "target_modules"})
    )
    assert {
        n: (v, on) for n, (v, on) in engine.parameters().items()
    } == theirs.parameters()  # 4-bit weights too
    assert engine.memory() > 0


def test_four_bits_are_near_the_base(base):
    """4 bits and 16-bit scales and offsets in groups of 64: half a percent of the weights' range off at most."""
    import mlx.nn as nn

    engine, plain = load(base, quantization="affine4"), load(base)
    four = [
        m
        for _, m in engine.model.named_modules()
        if isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding))
    ]
    assert len(four) == 2 * 7 + 2 and {(m.bits, m.group_size, m.mode) for m in four} == {
        (4, 64, "affine")
    }
    batch = collate(learnable(4), range(4))
    assert engine.loss(batch)[0] == pytest.approx(plain.loss(batch)[0], rel=0.1)
    assert engine.loss(batch)[0] != plain.loss(batch)[0]


def test_training_goes_on_bit_for_bit_from_a_saved_state(base, rows, tmp_path):
    run = given(base, dropout=0.1)
    whole, cut, again = engines.load(run), engines.load(run), engines.load(run.with_(seed=1))
    ahead = history(whole, batches(rows, whole, updates=6))
    history(cut, batches(rows, cut, updates=3))
    state = cut.state()
    checkpoint.write(tmp_path / "last.safetensors", state, {})
    again.restore(checkpoint.read(tmp_path / "last.safetensors")[0])
    assert all(
        np.array_equal(again.state()[k], v) and again.state()[k].dtype == v.dtype
        for k, v in state.items()
    )
    rest = history(again, batches(rows, again, updates=6), state=State(update=3))
    assert [line["loss"] for line in rest] == [line["loss"] for line in ahead[3:]]
    end, same = whole.state(), again.state()
    assert end.keys() == same.keys() and all(np.array_equal(end[k], same[k]) for k in end)


def test_a_state_of_another_model_is_refused(base, packed):
    with pytest.raises(LorakitError, match="has the shape"):
        load(base, rank=8).restore(packed.state())
    with pytest.raises(LorakitError, match="is in one only"):
        load(base, target_modules=["q_proj"]).restore(packed.state())


# Answers


def test_answers_together_are_those_one_by_one_and_stop(base, packed):
    prompts = [row["ids"] for row in noise(11, 3, 40, 7)]
    alone = [packed.generate([p], 12, [])[0] for p in prompts]
    assert packed.generate(prompts, 12, []) == alone
    assert [len(a) for a in alone] == [12] * 4
    model = SimpleNamespace(layers=packed.model.layers)
    assert [
        generation.alone(passes.Answering(model, packed.model), p, 12, []) for p in prompts
    ] == alone
    stop = [alone[0][5], alone[2][2]]
    ends = [next((i for i, token in enumerate(a) if token in stop), 12) for a in alone]
    assert ends[0] <= 5 and ends[2] <= 2
    assert packed.generate(prompts, 12, stop) == [
        a[:end] for a, end in zip(alone, ends, strict=True)
    ]


def test_answers_end_where_the_positions_do(tmp_path):
    base = save_base(
        tmp_path, AutoConfig.for_model("llama", **{**SMALL, "max_position_embeddings": 64})
    )
    engine = load(base, max_length=64)
    assert [len(a) for a in engine.generate([[1] * 60, [2] * 5], 20, [])] == [5, 5]
    assert [len(a) for a in engine.generate([[1] * 64], 20, [])] == [1]
    with pytest.raises(LorakitError, match="a prompt has 65 tokens, and the model 64 positions"):
        engine.generate([[1] * 65], 20, [])


# What is saved


def test_plain_peft_loads_what_is_saved_and_so_does_the_engine(base, packed, tmp_path):
    from peft import PeftModel

    packed.save(tmp_path / "adapter")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    ).eval()
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").eos_token_id == 257
    row = noise(40)[0]
    with torch.no_grad():
        logits = model(torch.tensor([row["ids"]])).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits, torch.tensor(row["ids"][1:]), reduction="sum"
    )
    batch = collate([row], [0])
    assert packed.loss(batch)[0] == pytest.approx(float(losses), abs=1e-3)
    again = engines.load(given(base), adapter=tmp_path / "adapter")
    assert (again.predict(batch) == packed.predict(batch)).all()
    theirs = load_torch(settings(base)).weights()
    assert {k: v.shape for k, v in again.weights().items()} == {
        k: v.shape for k, v in theirs.items()
    }


def test_an_adapter_of_another_base_is_refused(tmp_path, packed, base):
    packed.save(tmp_path / "adapter")
    other = save_base(
        tmp_path / "other", AutoConfig.for_model("llama", **{**SMALL, "intermediate_size": 96})
    )
    with pytest.raises(LorakitError, match="Was it made for another base"):
        engines.load(given(other), adapter=tmp_path / "adapter")
    with pytest.raises(LorakitError, match=r"adapter_config\.json and adapter_model\.safetensors"):
        engines.load(given(base), adapter=tmp_path / "none")


# Whole runs


@pytest.fixture
def run(rows_file, tmp_path, base):
    return tiny_run(base, rows_file, tmp_path / "outputs", engine="mlx", schedule="constant")


def test_a_whole_run_is_done_with_its_proof(rows_file, tmp_path, quick):
    """On the embedded model."""
    folder = lorakit.finetune(
        tiny_run(
            "tiny",
            rows_file,
            tmp_path,
            engine="mlx",
            learning_rate=5e-3,
            max_updates=4,
            test_fraction=0.05,
        )
    )
    record = folder.record
    assert record["status"] == "done" and set(record["proof"]) == {
        "finite",
        "applied",
        "frozen",
        "trained",
        "reloaded",
    }
    assert (
        record["choices"]["engine"] == ["mlx", "asked for"]
        and record["choices"]["packing"][0] is True
    )
    lines, _ = folder.history()
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_run_that_was_stopped_goes_on_to_the_same_end(run, quick, monkeypatch):
    with monkeypatch.context() as patch:
        real = Folder.append

        def append(self, line):
            real(self, line)
            if line.get("update") == 6 and "loss" in line:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(Folder, "append", append)
        assert lorakit.finetune(run).record["status"] == "stopped"
    cut, whole = lorakit.finetune(run), lorakit.finetune(run.with_(name="whole"))
    for folder in (cut, whole):
        assert folder.record["status"] == "done"
    ends = [(f / "adapter" / "adapter_model.safetensors").read_bytes() for f in (cut, whole)]
    assert ends[0] == ends[1]
    assert [x["loss"] for x in cut.history()[0]] == [x["loss"] for x in whole.history()[0]]


@pytest.mark.slow
def test_gpt_oss_trained_saved_and_asked_again_in_a_fresh_process(rows_file, tmp_path):
    base = save_base(
        tmp_path / "base",
        AutoConfig.for_model(
            "gpt_oss", **{**SMALL, **ARCHITECTURES["gpt_oss"], "sliding_window": 64}
        ),
    )
    folder = lorakit.finetune(
        tiny_run(
            base,
            rows_file,
            tmp_path,
            engine="mlx",
            learning_rate=5e-3,
            max_updates=12,
            test_fraction=0.05,
        )
    )
    record = folder.record
    assert (
        record["status"] == "done"
        and "a fresh process repeats 4 answers" in record["proof"]["reloaded"]
    )
    lines, _ = folder.history()
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    names = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {n.split(".")[-3] for n in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}


# Choices and refusals


MAC = Facts(
    place="mac",
    system="Darwin arm64",
    cores=8,
    memory=24 * 10**9,
    mps=True,
    packages={"torch": "2.13.0", "bitsandbytes": "0.50.2", "mlx": "0.32.4", "mlx-lm": "0.32.2"},
)


def test_a_mac_chooses_it_and_linux_only_when_asked(base):
    run = given(base, engine="auto", quantization="auto")
    name, why = choose.engine(run, MAC, bases.spec(base))
    assert name == "mlx" and why.startswith(
        "it is made for Apple Silicon: one memory, 4-bit weights, compiled steps"
    )
    assert choose.precision(given(base, precision="auto"), MAC, Spec())[0] == "bf16"
    linux = Facts(system="Linux x86_64", packages=MAC.packages)
    assert choose.precision(given(base, precision="auto"), linux, Spec())[0] == "fp32"
    assert choose.engine(run, linux, bases.spec(base))[0] == "torch"
    assert choose.engine(run.with_(engine="mlx"), linux, bases.spec(base)) == ("mlx", "asked for")
    assert (
        choose.engine(
            run, Facts(system="Darwin arm64", packages={"torch": "2.13.0"}), bases.spec(base)
        )[0]
        == "torch"
    )


def test_four_bits_are_the_engines_own(base):
    """bitsandbytes' NF4 has no form in MLX: asked for by name it goes to the engine that has it."""
    run = given(base, engine="auto", quantization="nf4")
    assert choose.engine(run, MAC, bases.spec(base))[0] == "torch"
    with pytest.raises(LorakitError, match="mlx: it has no nf4, but affine4, none"):
        choose.engine(run.with_(engine="mlx"), MAC, bases.spec(base))
    small = Facts(system="Darwin arm64", memory=10**5, packages=MAC.packages)
    assert choose.quantization(given(base, quantization="auto"), small, Spec())[0] == "affine4"
    assert choose.quantization(settings(base, quantization="auto"), small, Spec())[0] == "nf4"


def test_what_fits(base, tmp_path):
    assert engines.fits(MAC, bases.spec(base)) == ""
    assert engines.fits(MAC, Spec(path="owner/name")) == ""  # `load` will see
    assert engines.fits(Facts(packages={"mlx": "0.32.4"}), Spec()) == "mlx-lm is not installed"
    AutoConfig.for_model("opt").save_pretrained(tmp_path)
    assert engines.fits(MAC, Spec(path=str(tmp_path))) == "mlx-lm has no opt"
    assert engines.fits(MAC, Spec(config={"model_type": "mistral"})) == ""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpt2", "mlx-lm cannot make this gpt2 (.*n_ctx"),
        ("gpt_neox", "mlx-lm cannot make this gpt_neox (.*rotary_emb_base"),
        ("gptj", "mlx-lm's gptj lacks transformer.h.0.attn."),
        (
            "olmo",
            "mlx-lm cannot make this olmo",
        ),  # its file ends the process where another package is missing
    ],
)
def test_a_model_whose_layers_have_no_counterpart_is_left_to_another_engine(tmp_path, kind, words):
    base = save_base(
        tmp_path,
        AutoConfig.for_model(
            kind,
            vocab_size=300,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_size=32,
            rotary_dim=8,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=258,
        ),
    )
    assert re.match(words.replace("(", r"\("), engines.fits(MAC, bases.spec(base)))
    name, why = choose.engine(
        given(base, engine="auto", quantization="auto"), MAC, bases.spec(base)
    )
    assert name == "torch" and f"(mlx: {engines.fits(MAC, bases.spec(base))}" in why
    with pytest.raises(
        LorakitError, match=f"cannot load this {kind}|is no layer of mlx-lm's model"
    ):
        load(base, target_modules="all-linear", max_length=64)


def test_every_known_model_fits_or_says_why():
    said = {name: engines.fits(MAC, spec) for name, spec in models.known().items()}
    refused = {
        "blip-base": "blip",
        "distilbert": "distilbert",
        "qwen2.5-vl-3b": "qwen2_5_vl",
        "qwen2.5-vl-7b": "qwen2_5_vl",
        "smolvlm-256m": "smolvlm",
        "smolvlm-500m": "smolvlm",
        "swin-tiny": "swin",
        "vit-base": "vit",
        "vit-large": "vit",
        "opt-125m": "opt",
        "opt-1.3b": "opt",
        **{f"whisper-{size}": "whisper" for size in ("tiny", "base", "small", "medium")},
    }
    found = {name: words for name, words in said.items() if words}
    assert {
        name: f"mlx-lm has no {kind}" for name, kind in refused.items()
    }.items() <= found.items()
    assert found["gpt-oss-20b-nf4"] == "bitsandbytes' NF4 has no form in MLX"
    assert found.keys() - refused.keys() <= {"gpt-oss-20b-nf4", "gemma-3n-e2b", "gemma-3n-e4b"}


def test_the_bytes_of_a_frozen_base(base, tmp_path):
    """As counted before training, and as they are."""
    from lorakit.engines.mlx import bases
    from lorakit.planning import memory

    def weights(**changes):
        return memory.memory(given(base, **changes))["weights"]

    def held(engine):
        return sum(
            t.nbytes for n, t in tree_flatten(engine.model.parameters()) if ".lora_" not in n
        )

    values = sum(n for n, on in load(base).parameters().values() if not on)
    assert weights() == held(load(base)) == 4 * values
    assert weights(precision="bf16") == held(load(base, precision="bf16")) == 2 * values
    four = {"quantization": "affine4", "precision": "bf16"}
    assert weights(**four) == int(values * 4.5 / 8)
    assert held(load(base, **four)) == pytest.approx(weights(**four), rel=0.02)
    folder = bases.base_to_mlx(base, tmp_path / "four", four_bit=True)
    stored = memory.memory(given(str(folder)))["weights"]
    assert stored == (folder / "model.safetensors").stat().st_size < weights(precision="bf16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "length", "recomputed"),
    [("llama", 256, False), ("llama", 256, True), ("gpt_oss", 128, False), ("gpt_oss", 128, True)],
)
def test_the_bytes_of_a_micro_batch(tmp_path, kind, length, recomputed):
    config = {
        **SMALL,
        **ARCHITECTURES[kind],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "head_dim": 32,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **({"num_experts_per_tok": 4} if kind == "gpt_oss" else {}),
    }
    base = save_base(tmp_path, AutoConfig.for_model(kind, **config))
    run = given(
        base,
        max_length=length,
        gradient_checkpointing=recomputed,
        rank=8,
        target_modules=["q_proj", "v_proj"],
    )
    engine = engines.load(run)
    batch = collate(noise(*[length] * 4), range(4))
    gc.collect()  # what other tests have left would be freed meanwhile
    mx.clear_cache()
    idle = mx.get_active_memory()
    mx.reset_peak_memory()
    engine.backward(batch)
    assert engines.working_bytes(run, 4 * length) == pytest.approx(
        mx.get_peak_memory() - idle, rel=0.3
    )


def test_without_mlx_the_module_says_so():
    """Every engine's file is imported wherever one is chosen."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['mlx', 'mlx.core', 'mlx_lm']));"
        "from importlib import util; real = util.find_spec;"
        "util.find_spec = lambda name: None if name == 'mlx_lm' else real(name);"
        "from lorakit.engines import mlx; from lorakit.machine.hardware import Facts; from lorakit.models.spec import Spec;"
        "print(mlx.fits(Facts(), Spec()), mlx.fits(Facts(packages={'mlx': '1', 'mlx-lm': '1'}), Spec()), sep=', ')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "mlx is not installed, mlx is not installed", said.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "full"}, "method='full' is not served by engine='mlx'; use method=lora"),
        ({"use_dora": True}, "use_dora=True is not served"),
        (
            {"optimizer": "adamw_8bit"},
            "optimizer='adamw_8bit' is not served .*; use optimizer=adamw",
        ),
        ({"precision": "fp16"}, "precision='fp16' is not served .*; use bf16 or fp32"),
        ({"quantization": "nf4"}, "quantization='nf4' is not served .*; use affine4"),
        (
            {"max_length": 513, "micro_batch_tokens": 4096},
            "max_length=513 is longer than the 512 positions",
        ),
        (
            {"target_modules": ["q_proj", "query"]},
            r"has no layer 'query'; it has down_proj, .*q_proj",
        ),
        ({"target_modules": "nothing.*"}, "has no such layer"),
    ],
)
def test_refusals_name_the_cure(base, changes, words):
    with pytest.raises(LorakitError, match=words):
        load(base, **changes)


def test_several_processes_are_refused(base, monkeypatch):
    monkeypatch.setattr(distributed, "join", lambda: SimpleNamespace(size=2))
    with pytest.raises(LorakitError, match="serves one process"):
        load(base)


def test_a_model_that_mlx_lm_lacks(tmp_path):
    base = save_base(
        tmp_path, AutoConfig.for_model("opt", **SMALL, ffn_dim=64, word_embed_proj_dim=64)
    )
    with pytest.raises(
        LorakitError, match=r"mlx-lm cannot load this opt \(Model type opt not supported"
    ):
        load(base)


def test_a_weight_of_two_doubles_the_gradient(packed):
    rows = noise(6, 31)
    plain = gradients(packed, rows)
    doubled = gradients(packed, [{**r, "weights": [2.0] * len(r["ids"])} for r in rows])
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6, atol=1e-7 * abs(plain).max())
