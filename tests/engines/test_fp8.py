"""A frozen base in FP8: its products beside those in high precision, its curve, its runs. Lossy: cosines of 0.98."""

import numpy as np
import pytest
import torch
from helpers.engines import batches, gradients, history, learnable, noise, settings, shaken
from helpers.machines import A100, H100, L4, RTX, T4, facts
from helpers.paths import ROOT
from helpers.runs import tiny_run

import lorakit
from lorakit.engines.torch import load, working_bytes
from lorakit.engines.torch.kernels import fp8, lora
from lorakit.planning import choose, memory
from lorakit.tasks.batches import Batches, collate
from lorakit.tasks.dataset import prepare
from lorakit.training.finetune import method
from lorakit.training.loop import State

CPU = torch.device("cpu")
multiplies = pytest.mark.skipif(
    bool(fp8.tried(CPU)), reason="on a CPU this torch has no product of scaled rows"
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(one, other):
    one, other = (x.detach().flatten().double() for x in (one, other))
    return float(torch.nn.functional.cosine_similarity(one, other, 0))


# Numbers


def test_the_largest_of_a_row_becomes_448():
    found = fp8.quantized(
        torch.tensor([[2.0, 1.0, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [1e-3, 0.0, 0.0, -2e-3]])
    )
    assert found.values.float().tolist() == [[448, 224, -112, 0], [0, 0, 0, 0], [224, 0, 0, -448]]
    assert found.scale[[0, 2], 0].tolist() == pytest.approx([2 / 448, 2e-3 / 448], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_come_back_within_half_a_step(dtype):
    """Three bits of mantissa: 2^-4 of a number at most, of the smallest ones half a step of theirs."""
    x = (1000 * normal(300, 64)).to(dtype)
    found = fp8.quantized(x)
    assert found.values.float().abs().amax(1).tolist() == [448.0] * 300  # never the NaN beyond it
    off, room = (found.whole() - x.float()).abs(), 2**-4 + (2**-8 if dtype == torch.bfloat16 else 0)
    assert (off <= room * x.float().abs() + 2**-10 * found.scale).all() and off.max() > 0


@multiplies
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_plain_form(dtype):
    x, w = fp8.quantized(normal(37, 64)), fp8.quantized(normal(48, 64, seed=1))
    mine, plain = fp8.fast(x, w, dtype), fp8.plain(x, w, torch.float32)
    assert mine.dtype == dtype and mine.shape == (37, 48)
    assert (mine.float() - plain).abs().max() <= (
        1e-5 if dtype == torch.float32 else 2**-8
    ) * plain.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_and_the_gradient_of_its_input(dtype):
    exact, found = torch.nn.Linear(64, 48).requires_grad_(False), []
    layer = fp8.Linear(exact)
    for module, kind in ((layer, dtype), (exact, torch.float32)):
        x = normal(2, 9, 64).to(kind).requires_grad_()
        y = module(x)
        (y.float() * normal(2, 9, 48, seed=2)).sum().backward()
        found.append((y, x.grad))
    (y, dx), (plain_y, plain_dx) = found
    assert y.dtype == dx.dtype == dtype and y.shape == (2, 9, 48)
    assert 0.995 < cosine(y, plain_y) < 0.99999 and 0.995 < cosine(dx, plain_dx) < 0.99999
    assert [tuple(t.shape) for t in (layer.weight, layer.back)] == [
        (48, 64),
        (64, 48),
    ]  # two copies
    assert not any(p.requires_grad for p in layer.parameters())


def test_what_stays_whole(base):
    """The head, the first block, what is named, and sizes that the units do not take."""
    engine = load(settings(base, quantization="fp8"))
    names = {
        n.removeprefix("base_model.model.model.layers.").removesuffix(".base_layer")
        for n, m in engine.model.named_modules()
        if isinstance(m, fp8.Linear)
    }
    assert names == {
        "1.self_attn.q_proj",
        "1.self_attn.k_proj",
        "1.self_attn.v_proj",
        "1.self_attn.o_proj",
        "1.mlp.gate_proj",
        "1.mlp.up_proj",
        "1.mlp.down_proj",
    }
    assert (
        engine.notes["fp8"][0] == "7 linear layers"
        and "no FP8 units here" in engine.notes["fp8"][1]
    )

    class Model(torch.nn.ModuleDict):
        def get_output_embeddings(self):
            return self["head"]

    sizes = {
        "first": (16, 16),
        "head": (16, 16),
        "kept": (16, 16),
        "odd": (24, 16),
        "served": (32, 16),
    }
    model = Model({n: torch.nn.Linear(*s) for n, s in sizes.items()})
    assert (
        fp8.install(model, model["first"], ["kept"])
        == "1 linear layers, 1 of other sizes left whole"
    )
    assert [n for n, m in model.items() if isinstance(m, fp8.Linear)] == ["served"]


# In a model


def test_the_kernels_compute_what_peft_does(base):
    """Joint q, k, v and the gated MLP; and each input is quantized once for all layers that read it."""
    engine, rows = shaken(load(settings(base, quantization="fp8"))), noise(30, 9, 17)
    with lora.as_peft():
        plain = gradients(engine, rows)
    seen, real = [], fp8.quantized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fp8, "quantized", lambda x: seen.append(tuple(x.shape)) or real(x))
        mine = gradients(engine, rows)
    assert np.abs(mine - plain).max() <= 2e-3 * np.abs(plain).max() and np.abs(plain).max() > 0
    forward, back = (
        [(56, 64), (56, 64), (56, 64), (56, 128)],
        [(56, 64), (56, 128), (56, 128), (56, 64)],
    )
    assert seen[:4] == forward  # of q, k, v; of o; of gate and up; of down
    assert sorted(seen[4:]) == sorted(
        [*back, (56, 64), (56, 32), (56, 32)]
    )  # of down, gate, up, o, q, k, v


def test_a_document_is_what_it_is_alone(base):
    engine, rows = shaken(load(settings(base, quantization="fp8"))), noise(30, 9, 17)
    assert engine.packing
    together = engine.predict(collate(rows, range(3)))
    alone = np.concatenate([engine.predict(collate([row], [0])) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    padded = shaken(load(settings(base, quantization="fp8", packing=False)))
    np.testing.assert_allclose(padded.predict(collate(rows, range(3))), together, rtol=1e-3)


@pytest.fixture(scope="module")
def reports():
    """Real rows for the embedded model."""
    file = ROOT / "data" / "triage.jsonl"
    return prepare(lorakit.Run(data=str(file), max_rows=300)).rows["train"]


@pytest.mark.slow
def test_gradients_and_the_curve_of_the_embedded_model(reports):
    """Beside fp32: the next gradients where it stands after five updates, and the losses of thirty steps."""

    def pieces(updates):
        return Batches(
            reports,
            reports.lengths,
            global_batch_size=8,
            micro_batch_size=8,
            micro_batch_tokens=4096,
            packing=True,
            seed=0,
            epochs=9,
            max_updates=updates,
        )

    exact, lossy = load(settings("tiny")), load(settings("tiny", quantization="fp8"))
    history(exact, pieces(5))
    stood, found = exact.weights(), []
    for engine in (exact, lossy):
        engine.set_weights({n: stood[n.replace(".base_layer", "")] for n in engine.weights()})
        for batch in pieces(6)[5]:
            engine.backward(batch)
        found.append({n: p.grad.clone() for n, p in engine.trained.items()})
    cosines = {n: cosine(g, found[0][n]) for n, g in found[1].items()}
    assert 0.98 < min(cosines.values()) < 0.9999 and sum(cosines.values()) / len(cosines) > 0.99
    losses = [
        [line["loss"] for line in history(load(settings("tiny", quantization=q)), pieces(30))]
        for q in ("none", "fp8")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[0][-1] < losses[0][0] - 3


def test_it_goes_on_bit_for_bit(base):
    rows, run = learnable(64), settings(base, quantization="fp8", dropout=0.1)
    whole, cut, again = load(run), load(run), load(run.with_(seed=1))
    ahead = history(whole, batches(rows, whole, updates=6))
    history(cut, batches(rows, cut, updates=3))
    again.restore(cut.state())
    rest = history(again, batches(rows, again, updates=6), state=State(update=3))
    assert [line["loss"] for line in rest] == [line["loss"] for line in ahead[3:]]
    end, same = whole.state(), again.state()
    assert end.keys() == same.keys() and all(np.array_equal(end[k], same[k]) for k in end)


@pytest.mark.slow
def test_a_whole_run(base, rows_file, tmp_path):
    """To `done`, its proof by a fresh process included."""
    run = tiny_run(base, rows_file, tmp_path, quantization="fp8", name="whole")
    whole = lorakit.finetune(run)
    assert whole.record["status"] == "done" and whole.record["proof"]["reloaded"]
    assert whole.record["choices"]["fp8"][0] == "7 linear layers"
    assert whole.scores["loss"]["after"] < whole.scores["loss"]["before"]
    assert (
        method(run) == "LoRA (FP8 base)"
        and "LoRA (FP8 base)" in (whole.path / "report.md").read_text()
    )


# Chosen and refused


@pytest.mark.parametrize("card", [L4, H100, RTX], ids=lambda c: c.name)
def test_served_on_cards_with_fp8_units(card, base):
    resolved, choices = choose.resolve(
        lorakit.Run(data="-", model=base, quantization="fp8"), facts(card)
    )
    assert (resolved.quantization, resolved.engine) == ("fp8", "torch") and choices["quantization"][
        1
    ] == "asked for"


@pytest.mark.parametrize(
    ("cards", "name"), [((T4,), "Tesla T4 has 7.5"), ((H100, A100), "A100-SXM4-80GB has 8.0")]
)
def test_refused_by_name_on_others(cards, name, base):
    words = rf"quantization='fp8' needs a card of compute capability 8.9 or later .*{name}; use nf4 or none"
    with pytest.raises(lorakit.LorakitError, match=words):
        choose.resolve(lorakit.Run(data="-", model=base, quantization="fp8"), facts(*cards))


def test_refused_on_a_mac_and_rehearsed_on_a_cpu(base):
    run = lorakit.Run(data="-", model=base, quantization="fp8")
    with pytest.raises(lorakit.LorakitError, match="no form on Apple.s GPU; use nf4 or none"):
        choose.resolve(run, facts(place="mac", mps=True))
    assert choose.resolve(run, facts())[0].quantization == "fp8"


def test_never_chosen_by_itself(base):
    """It takes the room of bf16."""
    assert choose.resolve(lorakit.Run(data="-", model=base), facts(H100))[0].quantization == "none"
    sizes = {
        q: memory.memory(
            choose.resolve(lorakit.Run(data="-", model=base, quantization=q), facts(H100))[0]
        )
        for q in ("fp8", "none")
    }
    assert sizes["fp8"]["weights"] == sizes["none"]["weights"]


def test_both_copies_of_a_weight_lie_row_after_row():
    """`_scaled_mm` on a card refuses a second matrix that is not the transpose of such a one."""
    layer = fp8.Linear(torch.nn.Linear(32, 48))
    assert layer.weight.is_contiguous() and layer.back.is_contiguous()
    assert fp8.quantized(torch.ones(16, 32).t()).values.is_contiguous()


def test_memory_is_counted_by_going_through_its_own_products(base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen, real = [], fp8.quantized
    monkeypatch.setattr(fp8, "quantized", lambda x: seen.append(tuple(x.shape)) or real(x))
    assert working_bytes(settings(base, quantization="fp8"), 256) > 0
    assert (256, 64) in seen
    assert fp8.tried(CPU) == fp8.tried.__wrapped__(
        CPU
    )  # what was tried without content is not kept


def test_a_card_whose_torch_cannot_is_named(base, monkeypatch):
    from lorakit.engines.torch.layers import in_fp8

    monkeypatch.setattr(
        fp8, "tried", lambda where: "Rowwise scaling is not currently supported on your device"
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA GeForce RTX 5090")
    model = load(settings(base)).model
    with pytest.raises(
        lorakit.LorakitError, match=r"cannot multiply it on NVIDIA GeForce RTX 5090 \(Rowwise .*nf4"
    ):
        in_fp8(model, torch.device("cuda"), [])


def test_without_the_product_of_this_torch_the_plain_form_serves(base, monkeypatch):
    rows = noise(30, 9)
    mine = gradients(shaken(load(settings(base, quantization="fp8"))), rows)
    monkeypatch.setattr(fp8, "tried", lambda where: "not here")
    plain = gradients(shaken(load(settings(base, quantization="fp8"))), rows)
    assert cosine(torch.from_numpy(mine), torch.from_numpy(plain)) > 0.9999
