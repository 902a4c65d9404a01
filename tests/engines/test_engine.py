"""The torch engine against plain loops: one curve, exact packs, honest quantization, a state that comes back."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.engines import (
    END,
    RATE,
    SMALL,
    batches,
    gradients,
    history,
    learnable,
    noise,
    settings,
    shaken,
)
from helpers.models import byte_tokenizer, distance, save_base
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorakit.common.errors import LorakitError
from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import attention, lora
from lorakit.tasks.batches import collate
from lorakit.training import checkpoint
from lorakit.training.loop import State, train

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# One curve


PIECES = [(8, False), (4, True), (4, False), (2, True), (2, False)]


@pytest.mark.parametrize(("micro", "packing"), PIECES)
def test_one_curve_whatever_the_pieces(base, rows, curve, micro, packing):
    engine = load(settings(base, packing=packing))
    assert engine.packing is packing
    pieces = batches(rows, engine, micro)
    assert {len(pieces[u]) for u in range(30)} == {8 // micro}
    lines = history(engine, pieces)
    losses = [line["loss"] for line in lines]
    assert losses == pytest.approx([line["loss"] for line in curve[0]], abs=1e-5)
    assert [line["target_tokens"] for line in lines] == [line["target_tokens"] for line in curve[0]]
    # Adam hides the scale of a gradient, its norm does not.
    assert [line["grad_norm"] for line in lines] == pytest.approx(
        [line["grad_norm"] for line in curve[0]], rel=1e-4
    )
    assert losses[0] - losses[-1] > 1  # nats: equal because it learns, not because nothing happens


def test_the_curve_is_that_of_a_plain_loop(base, rows, curve):
    """transformers + PEFT + torch.optim.AdamW, padded rows, labels -100, nothing of lorakit but the first adapter."""
    from peft import LoraConfig, get_peft_model

    start = load(settings(base))
    order = batches(rows, start)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=16, lora_alpha=64, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
    )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, value in start.weights().items():
        trained[name].data = torch.from_numpy(value)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    model.train()
    losses, norms = [], []
    for update in range(30):
        chosen = [rows[i] for i in order.indices(update)]
        width = max(len(r["ids"]) for r in chosen)
        ids = torch.tensor([r["ids"] + [258] * (width - len(r["ids"])) for r in chosen])
        labels = torch.tensor(
            [
                [i if t else -100 for i, t in zip(r["ids"], r["targets"], strict=True)]
                + [-100] * (width - len(r["ids"]))
                for r in chosen
            ]
        )
        mask = torch.tensor([[1] * len(r["ids"]) + [0] * (width - len(r["ids"])) for r in chosen])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert [line["loss"] for line in curve[0]] == pytest.approx(losses, abs=1e-5)
    assert [line["grad_norm"] for line in curve[0]] == pytest.approx(norms, rel=1e-4)
    for name, value in curve[1].items():
        np.testing.assert_allclose(value, trained[name].detach().numpy(), atol=1e-4)


def test_a_tail_smaller_than_the_global_batch_is_an_update(base):
    rows = learnable(19)
    engine = load(settings(base))
    pieces = batches(rows, engine, micro=2, updates=3)
    kept = []
    lines = []

    def after(state, line):
        lines.append(line)
        kept.append(engine.weights())

    train(engine, pieces, State(), lambda update: RATE, after)
    assert [sum(len(b.rows) for b in pieces[u]) for u in range(3)] == [8, 8, 3]
    assert lines[2]["target_tokens"] == sum(sum(rows[i]["targets"]) for i in pieces.indices(2))
    assert all((kept[2][n] != kept[1][n]).any() for n in kept[2])


def test_no_clipping_and_clipping(base, rows):
    """The norm is that before clipping; clipped gradients have the norm asked for, so Adam's moments show it."""
    moments = {}
    for limit in (None, 1e-3):
        engine = load(settings(base, max_grad_norm=limit))
        line = history(engine, batches(rows, engine, updates=1))[0]
        state = engine.state()
        moments[limit] = math.sqrt(
            sum(
                float((v.astype(np.float64) ** 2).sum())
                for k, v in state.items()
                if k.endswith("/exp_avg")
            )
        )
        assert line["grad_norm"] > 0.1
    assert moments[None] == pytest.approx(0.1 * line["grad_norm"], rel=1e-4)  # (1 - beta1) g
    assert moments[1e-3] == pytest.approx(0.1 * 1e-3, rel=1e-3)


# Packs


@pytest.fixture(scope="module")
def packed(base):
    return shaken(load(settings(base)))


def test_a_document_in_a_pack_is_as_if_alone(packed):
    rows = noise(13, 2, 40, 7)
    assert packed.packing and packed.notes["packing"][1].startswith("packed")
    with torch.no_grad():
        packed.model.eval()
        together = packed.passes.logits(collate(rows, range(4))).split([12, 1, 39, 6])
        for row, logits in zip(rows, together, strict=True):
            alone = packed.passes.logits(collate([row], [0]))
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def test_attention_over_a_pack_is_that_of_the_dense_mask():
    """Against softmax(QK'/sqrt(d) + mask) V written out, grouped heads, with and without a window."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 17, 8, generator=generator) for h in (4, 2, 2))
    document = torch.tensor([0] * 5 + [1] * 11 + [2])
    place = torch.arange(17)
    for window in (None, 3):
        seen = (document[:, None] == document[None]) & (place[:, None] >= place[None])
        if window:
            seen &= place[:, None] - place[None] < window
        scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) / math.sqrt(8)
        plain = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v.repeat_interleave(2, 1)
        out, _ = attention.packed_attention(
            None,
            q,
            k,
            v,
            None,
            documents=attention.Documents([5, 11, 1], q.device),
            sliding_window=window,
        )
        torch.testing.assert_close(out, plain.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_a_leak_between_documents_is_found_at_loading(base, monkeypatch):
    """The whole pack as one document: the engine notices and pads, saying so."""
    honest = attention.packed_attention

    def leaky(*args, documents=None, **kwargs):
        joined = documents and attention.Documents([sum(documents.lengths)], documents.ends.device)
        return honest(*args, documents=joined, **kwargs)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, leaky)
    engine = load(settings(base))
    assert engine.packing is False
    assert "would see the one before it" in engine.notes["packing"][1]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("mistral", {"sliding_window": 8}),
        (
            "gemma3_text",
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        ),
    ],
)
def test_sliding_windows(tmp_path, kind, extra):
    """Documents longer than the window: packed equals padded in losses and gradients, together equals one by one."""
    base = save_base(tmp_path, AutoConfig.for_model(kind, **{**SMALL, **extra}))
    rows = noise(30, 5, 61)
    found = {}
    for packing in (True, False):
        engine = shaken(load(settings(base, packing=packing)))
        assert engine.packing is packing
        found[packing] = engine.predict(collate(rows, range(3)))[:, 0], gradients(engine, rows)
        prompts = [row["ids"] for row in rows]
        one_by_one = [engine.generate([p], 6, [])[0] for p in prompts]
        assert engine.generate(prompts, 6, []) == one_by_one
        assert len(one_by_one[0]) == 6
    np.testing.assert_allclose(found[True][0], found[False][0], atol=1e-4)
    assert distance(found[True][1], found[False][1]) < 1e-5
    # The window is at work: without it the same weights say something else.
    whole = AutoModelForCausalLM.from_pretrained(base, sliding_window=512).eval()
    windowed = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor([rows[2]["ids"]])
    with torch.no_grad():
        assert (whole(ids).logits - windowed(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("gemma2", {}, "no form over packs"),  # its scores are capped
        ("bloom", {"n_layer": 2, "n_head": 4}, "no form over packs"),  # eager only
        (
            "lfm2",
            {"layer_types": ["conv", "full_attention"]},
            "would see the one before it",
        ),  # a convolution crosses
        (
            "llama4_text",
            {
                "attention_chunk_size": 8,
                "num_local_experts": 2,
                "intermediate_size_mlp": 128,
                "moe_layers": [],
                "layer_types": ["chunked_attention"] * 2,
            },
            "own attention differs",
        ),
        ("doge", {}, "a mask of its own"),
    ],
)
def test_models_that_cannot_be_packed_are_padded_with_a_reason(tmp_path, kind, extra, reason):
    base = save_base(tmp_path, AutoConfig.for_model(kind, **{**SMALL, **extra}))
    engine = load(settings(base, rank=4))
    assert engine.packing is False
    packed, words = engine.notes["packing"]
    assert packed is False and words.startswith("padded") and reason in words
    rows = noise(30, 9)
    alone = [engine.predict(collate([row], [0]))[0] for row in rows]
    np.testing.assert_allclose(engine.predict(collate(rows, range(2))), alone, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(base, packed):
    rows = noise(30, 9, 17)
    recomputed = shaken(load(settings(base, gradient_checkpointing=True)))
    assert recomputed._bare().is_gradient_checkpointing
    assert distance(gradients(recomputed, rows), gradients(packed, rows)) < 1e-6


def test_dropout_follows_the_seed_of_the_micro_batch(base):
    engine, row = shaken(load(settings(base, dropout=0.3))), noise(40)
    losses = [engine.backward(collate(row, [0], seed=seed))[0] for seed in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]
    assert (
        engine.loss(collate(row, [0]))[0] == engine.loss(collate(row, [0]))[0]
    )  # none in evaluation


def test_loading_imports_no_other_models_code(base):
    """Each takes time and memory; there are four hundred."""
    code = (
        "import json, sys; from lorakit.engines.torch import load; from lorakit.run import Run; "
        "load(Run(**json.loads(sys.argv[1]))); "
        "print(*{m.split('.')[2] for m in sys.modules if '.modeling_' in m and 'transformers.models' in m})"
    )
    given = json.dumps(settings(base).model_dump(mode="json"))
    done = subprocess.run(
        [sys.executable, "-c", code, given], capture_output=True, text=True, check=True
    )
    assert "llama" in done.stdout and len(done.stdout.split()) < 6, done.stdout


# Quantization


def dequantized(engine, base, folder):
    """The same network in fp32: what the 4-bit weights stand for."""
    import bitsandbytes

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    four_bit = {
        n.replace("base_model.model.", ""): m
        for n, m in engine.model.named_modules()
        if isinstance(m, bitsandbytes.nn.Linear4bit)
    }
    for name, module in four_bit.items():
        weight = bitsandbytes.functional.dequantize_4bit(
            module.weight.data, module.weight.quant_state
        )
        model.get_submodule(name.replace(".base_layer", "")).weight.data = weight.float()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return shaken(load(settings(str(folder))))


def has_avx512_bf16():
    from bitsandbytes.functional import has_avx512bf16

    return has_avx512bf16()


@pytest.fixture(scope="module")
def four_bit_error(base, tmp_path_factory):
    """(cured?) -> relative error of the gradients after an evaluation through bitsandbytes' own products."""
    rows = noise(30, 9, 17)

    @lora.as_peft()
    def error(cured):
        engine = shaken(load(settings(base, quantization="nf4")))
        plain = dequantized(engine, base, tmp_path_factory.mktemp("fp32"))
        if not cured:
            for module in engine.model.modules():
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = True
        batch = collate(rows, range(3))
        before = distance(gradients(engine, rows), gradients(plain, rows))
        assert before < 1e-3
        np.testing.assert_allclose(
            engine.predict(batch)[:, 0], plain.predict(batch)[:, 0], rtol=1e-2
        )
        engine.generate([rows[0]["ids"]], 3, [])
        return distance(gradients(engine, rows), gradients(plain, rows))

    return error


def test_nf4_gradients_after_an_evaluation(four_bit_error):
    assert four_bit_error(cured=True) < 1e-3


@pytest.mark.skipif(not has_avx512_bf16(), reason="the fault needs a CPU with avx512_bf16")
def test_the_nf4_test_sees_the_fault_when_the_cure_is_gone(four_bit_error):
    assert four_bit_error(cured=False) > 0.1


def test_nf4_is_nf4_with_double_quantization(base):
    import bitsandbytes

    engine, plain = load(settings(base, quantization="nf4")), load(settings(base))
    layers = {
        n: m for n, m in engine.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)
    }
    assert len(layers) == 2 * len(PROJECTIONS)  # every projection of both layers, not the head
    for module in layers.values():
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, state.absmax.dtype) == ("nf4", True, torch.uint8)
        assert module.weight.data.numel() * 2 == math.prod(state.shape)  # two weights a byte
    sizes = [
        {n.replace(".base_layer", ""): v for n, v in e.parameters().items()}
        for e in (engine, plain)
    ]
    assert sizes[0] == sizes[1]  # counted in weights, not in bytes


# What moves and what does not


VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "full": {"method": "full"},
    "nf4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "nf4 dora": {"quantization": "nf4", "use_dora": True},
    "bf16": {"precision": "bf16"},
    "full bf16": {"method": "full", "precision": "bf16"},
    "nf4 bf16": {"quantization": "nf4", "precision": "bf16"},
    "checkpointing": {"gradient_checkpointing": True},
    "padded": {"packing": False},
    "one kind": {"target_modules": ["v_proj"]},
    "expression": {"target_modules": r".*\.1\..*_proj"},
    **{
        name: {"optimizer": name}
        for name in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_two_updates_move_everything_trained_and_nothing_frozen(base, rows, changes):
    engine = load(settings(base, **changes))
    tensors = dict(engine.model.named_parameters())
    tensors |= dict(engine.model.named_buffers())
    before, prints = {n: t.detach().clone() for n, t in tensors.items()}, engine.fingerprint()
    lines = history(engine, batches(rows, engine, updates=2))
    changed = {n for n, t in tensors.items() if not torch.equal(t, before[n])}
    now = engine.fingerprint()
    assert (
        changed
        == set(engine.trained)
        == {n for n, (_, trained) in engine.parameters().items() if trained}
    )
    assert {n for n in now if now[n] != prints[n]} == changed
    lines += history(engine, batches(rows, engine, updates=8), state=State(update=2))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(p.dtype == torch.float32 for p in engine.trained.values())
    if changes.get("method") != "full":
        assert all("lora_" in name for name in changed)
        frozen = engine.model.get_input_embeddings().weight.dtype
        assert frozen == (torch.bfloat16 if changes.get("precision") == "bf16" else torch.float32)


def test_variants_are_what_their_names_say(base):
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    scaling = {
        name: load(settings(base, **VARIANTS[name])).model.get_submodule(layer).scaling["default"]
        for name in ("lora", "rslora")
    }
    assert scaling == {"lora": 64 / 16, "rslora": 64 / math.sqrt(16)}
    assert sum("magnitude" in n for n in load(settings(base, use_dora=True)).trained) == 2 * len(
        PROJECTIONS
    )
    only = load(settings(base, **VARIANTS["expression"])).trained
    assert len(only) == 2 * len(PROJECTIONS) and all("layers.1." in n for n in only)
    full = load(settings(base, method="full"))
    assert full.parameters().keys() == full.trained.keys()


def test_bf16_stays_near_fp32(base, rows, curve):
    engine = load(settings(base, precision="bf16"))
    assert engine.packing
    losses = [line["loss"] for line in history(engine, batches(rows, engine, updates=15))]
    assert losses == pytest.approx([line["loss"] for line in curve[0][:15]], abs=0.05)
    assert losses != [line["loss"] for line in curve[0][:15]]


def test_weight_decay_spares_norms(base):
    engine = load(settings(base, method="full", weight_decay=0.5))
    decay = {
        p: g["weight_decay"]
        for g in engine.optimization.optimizer.param_groups
        for p in g["params"]
    }
    assert {decay[p] for p in engine.trained.values() if p.ndim == 2} == {0.5}
    assert {decay[p] for n, p in engine.trained.items() if "norm" in n} == {0.0}


# The state comes back


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
)
def test_training_goes_on_bit_for_bit_from_a_saved_state(base, rows, tmp_path, optimizer):
    """Rank 64: the 8-bit optimizers keep tensors below 4,096 values in 32 bits."""
    run = settings(base, optimizer=optimizer, rank=64, dropout=0.1)
    whole, cut, again = load(run), load(run), load(run.with_(seed=1))
    ahead = history(whole, batches(rows, whole, updates=6))
    history(cut, batches(rows, cut, updates=3))
    state = cut.state()
    eight_bit = [k for k, v in state.items() if v.dtype == np.uint8]
    assert bool(eight_bit) == ("8bit" in optimizer)
    checkpoint.write(tmp_path / "last.safetensors", state, {})
    again.restore(checkpoint.read(tmp_path / "last.safetensors")[0])
    assert again.state().keys() == state.keys()
    assert all(
        np.array_equal(again.state()[k], v) and again.state()[k].dtype == v.dtype
        for k, v in state.items()
    )
    rest = history(again, batches(rows, again, updates=6), state=State(update=3))
    assert [line["loss"] for line in rest] == [line["loss"] for line in ahead[3:]]
    end, same = whole.state(), again.state()
    assert end.keys() == same.keys() and all(np.array_equal(end[k], same[k]) for k in end)


@pytest.mark.parametrize(
    "name",
    [
        "precision",
        "quantization",
        "micro_batch_size",
        "micro_batch_tokens",
        "gradient_checkpointing",
    ],
)
def test_what_is_not_decided_is_refused_by_name(base, name):
    with pytest.raises(LorakitError, match=f"{name}='auto': an engine loads what is decided"):
        load(settings(base, **{name: "auto"}))


def test_a_state_of_another_model_is_refused(base):
    engine = load(settings(base))
    with pytest.raises(LorakitError, match="has the shape"):
        load(settings(base, rank=8)).restore(engine.state())
    with pytest.raises(LorakitError, match="is in one only"):
        load(settings(base, target_modules=["q_proj"])).restore(engine.state())


# Predictions and answers


def test_predictions_are_plain_cross_entropy(base):
    engine, rows = load(settings(base)), learnable(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["ids"]])).logits[0, :-1]
        answers, kept = torch.tensor(row["ids"][1:]), torch.tensor(row["targets"][1:])
        loss = F.cross_entropy(logits[kept], answers[kept], reduction="sum")
        expected.append(
            [float(loss), int(kept.sum()), int((logits.argmax(-1) == answers)[kept].sum())]
        )
    batch = collate(rows, range(5))
    found = engine.predict(batch)
    np.testing.assert_allclose(found[:, 0], np.array(expected)[:, 0], rtol=1e-5)
    assert found[:, 1:].tolist() == np.array(expected)[:, 1:].tolist()
    assert engine.loss(batch) == (pytest.approx(found[:, 0].sum()), int(found[:, 1].sum()))


def test_padding_is_never_a_target_when_the_end_token_pads(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    engine, other = (shaken(load(settings(b, packing=False))) for b in (str(tmp_path), base))
    assert (engine.passes.pad_id, other.passes.pad_id) == (END, 258)
    rows = learnable(4)
    batch = collate(rows, range(4))
    assert len(set(batch.lengths.tolist())) > 1
    total, count = engine.backward(batch)
    assert count == sum(sum(row["targets"]) for row in rows)
    assert all(
        row["ids"][-1] == END and row["targets"][-1] for row in rows
    )  # the answer's own end is trained
    assert total == pytest.approx(sum(engine.loss(collate([r], [0]))[0] for r in rows), rel=1e-5)
    assert distance(gradients(engine, rows), gradients(other, rows)) < 1e-6


def test_answers_together_are_those_one_by_one_and_stop(packed):
    prompts = [row["ids"] for row in noise(11, 3, 40, 7)]
    alone = [packed.generate([p], 12, [])[0] for p in prompts]
    assert packed.generate(prompts, 12, []) == alone
    assert [len(a) for a in alone] == [12] * 4
    stop = [alone[0][5], alone[2][2]]
    ends = [next((i for i, token in enumerate(a) if token in stop), 12) for a in alone]
    assert ends[0] <= 5 and ends[2] <= 2
    stopped = packed.generate(prompts, 12, stop)
    assert stopped == [a[:end] for a, end in zip(alone, ends, strict=True)]


def test_answers_are_greedy(packed):
    """Token by token by the largest logit, without a cache."""
    ids = noise(9)[0]["ids"]
    expected = list(ids)
    for _ in range(5):
        batch = collate([{"ids": [*expected, 0], "targets": [False] * len(expected) + [True]}], [0])
        packed.model.eval()
        with torch.no_grad():
            expected.append(int(packed.passes.logits(batch).argmax()))
    assert packed.generate([ids], 5, []) == [expected[len(ids) :]]


def test_answers_are_greedy_whatever_the_model_recommends(base, packed, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.generation_config.update(
        repetition_penalty=9.0, no_repeat_ngram_size=1, do_sample=True, temperature=2.0
    )
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    prompts = [row["ids"] for row in noise(11, 30)]
    engine = shaken(load(settings(str(tmp_path))))
    assert engine.generate(prompts, 12, []) == packed.generate(prompts, 12, [])


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_answers_end_where_the_positions_do(tmp_path, kind):
    """Tables of positions have no entry beyond; 64 of them and a prompt of 60 leave 5 new tokens."""
    base = save_base(
        tmp_path,
        AutoConfig.for_model(
            kind,
            **{
                **SMALL,
                "max_position_embeddings": 64,
                "n_positions": 64,
                "n_embd": 64,
                "n_layer": 2,
                "n_head": 4,
                "ffn_dim": 64,
                "word_embed_proj_dim": 64,
            },
        ),
    )
    engine = load(settings(base, max_length=64))
    assert [len(a) for a in engine.generate([[1] * 60, [2] * 5], 20, [])] == [5, 5]
    assert [len(a) for a in engine.generate([[1] * 64], 20, [])] == [1]
    assert [len(a) for a in engine.generate([[1] * 9], 20, [])] == [20]
    with pytest.raises(LorakitError, match="a prompt has 65 tokens, and the model 64 positions"):
        engine.generate([[1] * 65], 20, [])


# Refusals, with the cure


def test_a_layer_that_is_not_there(base):
    with pytest.raises(LorakitError, match=r"no layer 'query'.*down_proj.*q_proj"):
        load(settings(base, target_modules=["q_proj", "query"]))
    with pytest.raises(LorakitError, match="target_modules="):
        load(settings(base, target_modules="nothing.*"))


def test_a_tokenizer_larger_than_the_embedding(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(260)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(LorakitError, match=r"the tokenizer has 262 tokens, the model 260"):
        load(settings(str(tmp_path)))


def test_rows_longer_than_the_positions(base):
    with pytest.raises(LorakitError, match=r"max_length=513 is longer than the 512 positions"):
        load(settings(base, max_length=513))


def test_a_model_that_does_not_write_text(tmp_path):
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LorakitError, match="transformers' vit serves classify_image"):
        load(settings(str(tmp_path), task="chat"))


def test_weights_that_are_missing_or_broken(base, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    AutoConfig.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(LorakitError, match="could not be loaded"):
        load(settings(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(LorakitError, match="could not be loaded"):
        load(settings(str(tmp_path)))


# The loop


def test_the_loop_divides_once_by_all_targets():
    """Two micro-batches of 1 and 3 targets with losses 8 and 12: 20 / 4, not the mean of 8 and 4."""
    updates = []
    engine = SimpleNamespace(
        objective=SimpleNamespace(MEAN_RATIO=False),
        backward=lambda batch: batch,
        reduce=lambda total, count: (total, count),
        memory=lambda: 7,
        update=lambda rate, count: updates.append((rate, count)) or (0.5, False),
    )
    lines, pieces = [], [[(8.0, 1), (12.0, 3)], [(3.0, 3)]]
    state = train(
        engine, pieces, State(), lambda u: [0.1, 0.2][u], lambda state, line: lines.append(line)
    )
    assert [
        (line["update"], line["loss"], line["target_tokens"], line["learning_rate"])
        for line in lines
    ] == [(1, 5.0, 4, 0.1), (2, 1.0, 3, 0.2)]
    assert updates == [(0.1, 4), (0.2, 3)]
    assert (state.update, state.target_tokens, state.skipped) == (2, 7, 0)


def test_the_loop_ends_when_told_and_refuses_what_is_not_finite():
    engine = SimpleNamespace(
        objective=SimpleNamespace(MEAN_RATIO=False),
        backward=lambda batch: (batch, 1),
        reduce=lambda *x: x,
        memory=lambda: 0,
        first_nonfinite_layer=lambda batches: "layer 3",
        update=lambda *x: (1.0, True),
    )
    state = train(
        engine, [[1.0]] * 5, State(), lambda u: 1.0, lambda state, line: state.update == 3
    )
    assert (state.update, state.skipped) == (3, 3)
    with pytest.raises(
        LorakitError,
        match=r"the loss became nan at update 2: layer 3; lower learning_rate \(0\.5 n",
    ):
        train(engine, [[1.0], [math.nan]], State(), lambda u: 0.5, lambda state, line: False)
