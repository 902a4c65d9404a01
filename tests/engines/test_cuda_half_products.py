"""Products in fp16 with everything else in fp32, beside the same model in fp32; no activation overflows."""

import pytest
import torch
from helpers.cuda_reference import claimed
from helpers.engines import SMALL, batches, history, learnable, noise, settings, shaken
from helpers.models import save_base
from transformers import Gemma3TextConfig

from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import half_products, loss, products
from lorakit.models import spec
from lorakit.notebook.rehearse import stand_in
from lorakit.tasks.batches import collate

# Gemma 3 270M over 1,024 tokens of instructions, fp32: the residual stream reaches 103,821, beyond fp16's 65,504; the
# inputs of its layers 331, their outputs 468. And what no model is known to hold.
RECORDED = [330.7, 468.2, 103_821.3, 1.0e9, 1e-9]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    config = Gemma3TextConfig(
        **SMALL
        | {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "initializer_range": 0.2,
        }
    )
    return save_base(tmp_path_factory.mktemp("gemma"), config)


@pytest.fixture
def overflows(monkeypatch):
    """The bases of these tests are said to leave fp16's range, as the family Gemma 3 does."""
    from lorakit.models import base_model

    plain = base_model.spec
    from dataclasses import replace

    monkeypatch.setattr(base_model, "spec", lambda name: replace(plain(name), fp16=False))


@pytest.mark.parametrize("largest", RECORDED)
def test_products_of_recorded_activations(largest):
    """Rows of very different sizes: each is right by its own measure, forward and back."""
    layer = torch.nn.Linear(256, 96)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([largest, 1.0, 1e-3, 0.0, -largest])[:, None]
    expected = torch.nn.functional.linear(x, layer.weight, None)
    bias, layer.bias = layer.bias, None
    back = torch.autograd.grad(
        torch.nn.functional.linear(y := x.clone().requires_grad_(), layer.weight).sum(), y
    )[0]
    layer.weight.data = layer.weight.data.half()
    layer.weight.requires_grad_(False)
    out = products.linear(x, layer)
    assert out.isfinite().all() and out.dtype == torch.float32
    error = (out - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)
    assert error.max() < 2e-3 and not out[3].any()
    layer.bias = bias
    dx = products.back(torch.ones(5, 96) * largest, layer.weight) / largest
    assert (dx - back).norm() / back.norm() < 2e-3


@pytest.mark.parametrize("card", [(7, 5), (9, 0)])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_model_trains_as_in_fp32(overflows, gemma, card, quantization):
    rows = learnable(32)
    found = {}
    for precision in ("fp32", "fp16"):
        with claimed(card):
            engine = load(settings(gemma, precision=precision, quantization=quantization))
            assert engine.packing, engine.notes["packing"]
            found[precision] = [
                u["loss"] for u in history(engine, batches(rows, engine, updates=6))
            ]
    assert found["fp16"] == pytest.approx(found["fp32"], rel=1e-2)
    assert engine.notes["products"][0].endswith("in fp16, all else in fp32")
    kept = {p.dtype for n, p in engine.model.named_parameters() if "norm" in n}
    assert kept == {torch.float32} and not engine.optimization.scaler.is_enabled()
    assert engine.model.get_input_embeddings().weight.dtype == torch.float16


def test_gradients_are_those_of_fp32(overflows, gemma):
    found = []
    for precision in ("fp32", "fp16"):
        engine = shaken(load(settings(gemma, precision=precision)))
        engine.backward(collate(noise(40, 30), range(2)))
        found.append(torch.cat([engine.trained[n].grad.flatten() for n in sorted(engine.trained)]))
    one, other = found
    assert (one - other).norm() < 2e-2 * one.norm()


def test_trained_embeddings_and_head_are_read(overflows, gemma):
    """PEFT trains copies of modules: each has to look up in its own weights."""
    found = []
    for precision in ("fp32", "fp16"):
        engine = load(settings(gemma, precision=precision, train_embeddings=True))
        engine = shaken(engine, by=0.02)
        engine.backward(collate(noise(40, 30), range(2)))
        whole = [n for n in sorted(engine.trained) if "lora_" not in n]
        assert len(whole) == 2 and all(engine.trained[n].grad is not None for n in whole)
        found.append(torch.cat([engine.trained[n].grad.flatten() for n in whole]))
        found.append(engine.generate([[1, 2, 3]], 8, []))
    one, answers, other, others = found
    assert (one - other).norm() < 2e-2 * one.norm() and answers == others


def test_a_residual_stream_beyond_fp16(overflows, gemma, tmp_path):
    """Beyond 65,504 after the first layer: plain fp16 gives infinite losses, and this the losses of fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gemma)
    for layer in model.model.layers:
        layer.post_feedforward_layernorm.weight.data += 3e4
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(gemma).save_pretrained(tmp_path)
    batch = collate(noise(40, 30), range(2))
    losses = [load(settings(str(tmp_path), precision=p)).loss(batch)[0] for p in ("fp32", "fp16")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-3n-e2b", "gpt-oss-20b"])
def test_families_that_overflow(tmp_path, name):
    """Shrunken: the loss of fp32 on a T4, in whatever else a model computes with; gpt-oss keeps its experts in fp32."""
    if "3n" in name:
        pytest.importorskip("timm")
    base, _ = stand_in(name, tmp_path)
    found = []
    for precision in ("fp32", "fp16"):
        with claimed((7, 5)):
            engine = shaken(load(settings(base, precision=precision)))
            assert (engine.optimization.scaler.is_enabled(), engine.passes.autocast) == (
                False,
                None,
            )
            loss, count = engine.backward(collate(noise(70, 9), range(2)))
            _, skipped = engine.update(1e-4, count)
            found.append(float(loss))
            assert not skipped
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_the_heads_loss_with_a_head_in_fp16():
    hidden = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * 3e4
    weight = torch.randn(90, 64, generator=torch.Generator().manual_seed(1)) * 1e-5
    target_ids = torch.arange(40)
    found = []
    for table in (weight.half().float(), weight.half()):
        x = hidden.clone().requires_grad_()
        total = loss.linear_cross_entropy(x, table, target_ids)
        found.append((total.detach(), *torch.autograd.grad(total, x)))
    (one, gradient), (other, half) = found
    assert other == pytest.approx(float(one), rel=1e-3)
    assert (gradient - half).norm() < 2e-3 * gradient.norm()


@pytest.mark.parametrize("kind", ["fp16", "fp32 before a head in fp16"])
def test_losses_of_documents_in_fp16(kind):
    """Of preferences. Sure of its targets: the gradient is of probabilities that fp16 rounds to nothing."""
    weight = torch.randn(90, 64, generator=torch.Generator().manual_seed(1)).half()
    hidden = (weight[:40].float() * 22 / 64).half()
    target_ids, document = torch.arange(40), torch.arange(40) // 10
    found = []
    for dtype, table in (
        (torch.float32, weight.float()),
        (torch.float16 if kind == "fp16" else torch.float32, weight),
    ):
        x = hidden.to(dtype).requires_grad_()
        losses = loss.document_losses(x, table, target_ids, document, 4)
        (gradient,) = torch.autograd.grad(losses @ torch.tensor([64.0, 0.5, 16.0, 1.0]), x)
        found.append((losses.detach(), gradient.float()))
    (one, gradient), (other, half) = found
    assert torch.allclose(one, other, rtol=2e-2, atol=1e-5)
    off = (gradient - half).norm(dim=1) / gradient.norm(dim=1)
    assert off.median() < 2e-2


def test_which_families_compute_so():
    left = {s.name for s in spec.known().values() if not s.fp16}
    assert left >= {"gemma-3-1b", "gemma-3n-e2b", "gpt-oss-20b"}
    assert half_products.asked_for("fp16", "lora", False)
    assert not half_products.asked_for("fp16", "lora", True)
    assert not half_products.asked_for("fp32", "lora", False)
