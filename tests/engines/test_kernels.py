"""Each kernel beside its plain form: PEFT's and transformers' modules, F.cross_entropy, dense masks."""

import contextlib
import copy
import math
import sys
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers.engines import SMALL, noise, settings
from helpers.engines import shaken as shaken_engine
from helpers.kernels import adapted, same, shaken, step
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from lorakit.engines.torch import kernels, load
from lorakit.engines.torch.kernels import attention, gated, lora, loss, norm, rotary
from lorakit.models import spec as models
from lorakit.tasks.batches import collate

on_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


@pytest.fixture(autouse=True)
def written_by_transformers():
    """Every file has its own functions back, so that a test's plain form is plain."""
    for file in [vars(f) for f in sys.modules.values() if rotary.NAME in vars(f)]:
        file[rotary.NAME] = getattr(file[rotary.NAME], "plain", file[rotary.NAME])


def normal(*shape, seed=0, dtype=torch.float32, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(one, other, tolerance=1e-6, least=1e-3):
    """Relative to the largest value; all zeros are a rounding away from values of `least`."""
    assert (one - other).abs().max() <= tolerance * max(other.abs().max(), least)


class Made(TorchDispatchMode):
    """The sizes of all tensors made inside, and the most bytes of them that lived together."""

    def __init__(self):
        super().__init__()
        self.sizes, self.alive, self.most = [], {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.sizes.append(tensor.numel())
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.alive.values()))
        return out


# The head and its cross entropy


def plain_loss(hidden, weight, answers, scale, softcap):
    logits = scale * (hidden @ weight.t()).float()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, answers, reduction="sum")


def both_losses(count, scale=1.0, softcap=None, dtype=torch.float32):
    """((loss, gradient of hidden, gradient of weight) of the kernel, the same of the plain form in fp32)"""
    found = []
    for function, kind in ((loss.linear_cross_entropy, dtype), (plain_loss, torch.float32)):
        hidden = normal(count, 24).to(dtype).to(kind).requires_grad_()
        weight = normal(90, 24, seed=1).to(dtype).to(kind).requires_grad_()
        answers = torch.randint(90, (count,), generator=torch.Generator().manual_seed(2))
        total = function(hidden, weight, answers, scale, softcap)
        (total / 7).backward()
        found.append((total.detach(), hidden.grad, weight.grad))
    return found


@pytest.mark.parametrize("count", [1, 15, 16, 17, 48, 61])  # 16 tokens at a time
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 5.0), (0.5, 3.0)])
def test_the_loss_of_a_head(monkeypatch, count, scale, softcap):
    monkeypatch.setattr(loss, "SMALL", 1)
    mine, plain = both_losses(count, scale, softcap)
    for one, other in zip(mine, plain, strict=True):
        assert one.dtype == other.dtype
        close(one, other, 2e-6)


def test_the_loss_of_a_head_in_bf16(monkeypatch):
    monkeypatch.setattr(loss, "SMALL", 1)
    mine, plain = both_losses(61, dtype=torch.bfloat16)
    assert mine[0].dtype == torch.float32 and mine[1].dtype == torch.bfloat16
    assert float(mine[0]) == pytest.approx(float(plain[0]), rel=2e-3)
    for one, other in zip(mine[1:], plain[1:], strict=True):
        assert F.cosine_similarity(one.float().flatten(), other.flatten(), 0) > 0.9999


def test_logits_far_out_and_all_alike():
    """exp(1000) overflows; equal logits are ln V nats."""
    hidden, weight = 1000 * torch.eye(3), torch.eye(3)
    assert loss.linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 0])) == 1000
    zero = loss.linear_cross_entropy(torch.zeros(4, 3), weight, torch.tensor([0, 1, 2, 0]))
    assert zero == pytest.approx(4 * math.log(3))


def test_the_head_is_trained_or_frozen_by_itself():
    for frozen in (0, 1):
        both = [
            normal(20, 8).requires_grad_(frozen != 0),
            normal(50, 8, seed=1).requires_grad_(frozen != 1),
        ]
        loss.linear_cross_entropy(*both, torch.arange(20)).backward()
        assert both[frozen].grad is None and both[1 - frozen].grad.abs().sum() > 0


def test_memory_of_the_head_does_not_grow_with_vocabulary_times_tokens(monkeypatch):
    """Beside the hidden states' gradient one chunk of logits, of which two or three copies live at a time."""
    monkeypatch.setattr(loss, "SMALL", 2**15)
    most = {}
    for function in (loss.linear_cross_entropy, plain_loss):
        for tokens, vocabulary in ((256, 512), (256, 1024), (512, 1024)):
            hidden, weight = normal(tokens, 8).requires_grad_(), normal(vocabulary, 8)
            with Made() as seen:
                function(hidden, weight, torch.arange(tokens), 1.0, None).backward()
            most[function, tokens, vocabulary] = seen.most
    room = 4 * 4 * 2**15
    assert all(
        most[loss.linear_cross_entropy, t, v] < room
        for t, v in ((256, 512), (256, 1024), (512, 1024))
    )
    assert most[plain_loss, 512, 1024] > 2 * 4 * 512 * 1024


def test_scores_are_losses_and_right_answers(monkeypatch):
    monkeypatch.setattr(loss, "SMALL", 1)
    hidden, weight = normal(37, 8), normal(20, 8, seed=1)
    logits = 3 * torch.tanh(0.5 * hidden @ weight.t() / 3)
    answers = torch.where(torch.arange(37) % 2 == 0, logits.argmax(-1), 0)
    losses, right = loss.scores(hidden, weight, answers, 0.5, 3.0)
    close(losses, F.cross_entropy(logits, answers, reduction="none"))
    assert right.tolist() == (logits.argmax(-1) == answers).tolist() and 19 <= right.sum() < 37


# RMSNorm and the middle of a gated MLP


@pytest.mark.parametrize("offset", [0.0, 1.0])  # Gemma's weights count from one
def test_norm(offset):
    found = []
    for mine in (True, False):
        x, weight = normal(3, 5, 16).requires_grad_(), normal(16, seed=1) + offset
        y = norm.norm(x, weight, 1e-6) if mine else F.rms_norm(x, (16,), weight, 1e-6)
        (y * normal(3, 5, 16, seed=2)).sum().backward()
        found.append((y, x.grad))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1], 2e-6)


def test_norm_keeps_its_precision_and_its_inputs():
    x = normal(4, 16, dtype=torch.bfloat16).requires_grad_()
    before, dy = x.detach().clone(), torch.ones(4, 16, dtype=torch.bfloat16)
    y = norm.norm(x, torch.ones(16), 1e-6)
    y.backward(dy)
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert torch.equal(x, before) and torch.equal(dy, torch.ones_like(dy))


def test_norms_that_are_something_else_stay_as_they_are():
    class OddRMSNorm(torch.nn.Module):
        """Divides by the root of the sum."""

        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(16), requires_grad=False), 1e-6

        def forward(self, x):
            return self.weight * x / x.square().sum(-1, keepdim=True).sqrt()

    frozen, trained = (
        torch.nn.RMSNorm(16, eps=1e-6).requires_grad_(False),
        torch.nn.RMSNorm(16, eps=1e-6),
    )
    model = torch.nn.ModuleList(
        [OddRMSNorm(), frozen, trained, torch.nn.LayerNorm(16).requires_grad_(False)]
    )
    assert norm.install(model) == {"RMSNorm": 1}
    assert ["forward" in vars(m) for m in model] == [False, True, False, False]


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_the_gradient_of_a_gated_product(act):
    e, g, dh = (normal(6, 4, seed=s, dtype=torch.float64).requires_grad_(s < 2) for s in range(3))
    plain = gated.ACTS[act](e) * g
    plain.backward(dh)
    h, de, dg = gated.backward(dh.clone(), e.detach(), g.detach(), act)
    close(gated.forward(e.detach(), g.detach(), act), plain.detach(), 1e-12)
    for one, other in ((h, plain.detach()), (de, e.grad), (dg, g.grad)):
        close(one, other, 1e-12)


def test_activations_are_known_by_what_they_compute():
    assert gated.name_of(torch.nn.SiLU()) == "silu"
    assert gated.name_of(torch.nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert [gated.name_of(a) for a in (torch.nn.GELU(), torch.nn.ReLU(), None)] == [None] * 3


# Adapters: shrunken models of every family, with what is put into each


FAMILIES = {
    "llama-3.2-1b": "14 adapted layers, 2 joint q, k, v, 2 gated MLP, 5 RMSNorm, 1 rotary",
    "smollm2-135m": "14 adapted layers, 2 joint q, k, v, 2 gated MLP, 5 RMSNorm, 1 rotary",
    "mistral-7b": "14 adapted layers, 2 joint q, k, v, 2 gated MLP, 5 RMSNorm, 1 rotary",
    "qwen3-0.6b": "14 adapted layers, 2 joint q, k, v, 2 gated MLP, 9 RMSNorm, 1 rotary",
    "gemma-3-270m": "14 adapted layers, 2 joint q, k, v, 2 gated MLP, 13 RMSNorm, 1 rotary",
    "phi-3-mini": "8 adapted layers, 5 RMSNorm, 1 rotary",
    "opt-125m": "12 adapted layers, 2 joint q, k, v",
    "gpt-oss-20b": "8 adapted layers, 2 joint q, k, v, 5 RMSNorm",
}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_it_did(name, dropout):
    model = adapted(name, dropout=dropout)
    plain = step(model)
    words = kernels.install(model)
    if dropout:
        assert "gated MLP" not in words and "joint" not in words and "adapted layers" in words
    else:
        assert words == FAMILIES[name]
    same(step(model), plain)
    with lora.as_peft():
        same(step(model), plain)


def test_every_family_was_asked():
    kinds = {spec.config["model_type"] for spec in models.known().values() if spec.config}
    words = kinds & (
        set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    )
    # Gemma 3 and 3n, which see too, share layers with gemma3_text; what cannot be served there is left as it is.
    assert words - {models.known()[name].config["model_type"] for name in FAMILIES} == {"whisper"}


def test_a_linear_layer_that_does_more_is_left_to_peft():
    """As transformers' routers and grouped layers do."""
    import peft

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = torch.nn.Sequential(Doubled(8, 8), torch.nn.Linear(8, 8))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "1"]))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    plain = model(x)
    found = lora.install(model)
    assert (found["adapted layers"], found["left to PEFT"]) == (1, 1)
    assert torch.allclose(model(x), plain)


def test_a_gated_mlp_that_does_more_is_left_alone():
    """Gemma 3n's first layers let a twentieth of their activations through."""
    from transformers import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

    config = Gemma3nTextConfig(
        hidden_size=8,
        intermediate_size=24,
        num_hidden_layers=2,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.95, 0.0],
    )
    with torch.device("meta"):  # as it is planned
        layers = [Gemma3nTextMLP(config, i) for i in (0, 1)]
    assert [gated.is_gated(layer, "gelu_tanh") for layer in layers] == [False, True]


def test_recomputed_layers():
    model = adapted()
    plain = step(model)
    kernels.install(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    same(step(model), plain)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ["q_proj"]}, "2 adapted layers, 5 RMSNorm, 1 rotary"),
        (
            {"target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"]},
            "8 adapted layers, 5 RMSNorm, 1 rotary",
        ),
        (
            {"use_rslora": True},
            "14 adapted layers, 2 joint q, k, v, 2 gated MLP, 5 RMSNorm, 1 rotary",
        ),
        ({"use_dora": True}, "14 left to PEFT, 5 RMSNorm, 1 rotary"),
    ],
)
def test_other_adapters(changes, words):
    model = adapted(**changes)
    plain = step(model)
    assert kernels.install(model) == words
    same(step(model), plain)


def test_a_trained_base_layer_or_another_kind_of_layer_is_left_to_peft():
    model = adapted()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.base_layer.weight.requires_grad_()
    plain = step(model)
    words = "13 adapted layers, 1 left to PEFT, 2 gated MLP, 1 joint q, k, v, 5 RMSNorm, 1 rotary"
    assert kernels.install(model) == words
    same(step(model), plain)
    assert layer.base_layer.weight.grad is not None


def test_disabled_merged_and_second_adapters():
    """What the kernels know nothing of is PEFT's own result, in both directions."""
    model = adapted()
    plain, ids = copy.deepcopy(model), torch.arange(3, 40)[None]
    kernels.install(model)

    def agree():
        with torch.no_grad():
            close(model(input_ids=ids).logits, plain(input_ids=ids).logits, 1e-5)
            return model(input_ids=ids).logits

    first = agree()
    with model.disable_adapter(), plain.disable_adapter():
        assert (agree() - first).abs().max() > 1e-3
    for m in (model, plain):
        m.add_adapter("second", m.peft_config["default"])
        m.set_adapter("second")
        shaken(m, seed=5)
    second = agree()
    same(step(model), step(plain))
    assert (second - first).abs().max() > 1e-3
    for m in (model, plain):
        m.base_model.set_adapter(["default", "second"])
    assert (agree() - second).abs().max() > 1e-3
    for m in (model, plain):
        m.set_adapter("default")
    agree()
    model.merge_adapter()
    agree()
    model.unmerge_adapter()
    close(agree(), first, 1e-4)


def test_an_error_between_q_and_k_leaves_nothing_wrong():
    model = adapted()
    kernels.install(model)
    whole = step(model)
    key = model.base_model.model.model.layers[1].self_attn.k_proj
    kept = key.forward

    def failing(x):
        raise torch.OutOfMemoryError("no room")

    key.forward = failing
    with pytest.raises(torch.OutOfMemoryError):
        step(model, seed=4)
    key.forward = kept
    same(step(model), whole, 0.0)


def test_q_k_and_v_of_different_inputs_are_noticed():
    model = adapted()
    kernels.install(model)
    attend, width = model.base_model.model.model.layers[0].self_attn, model.config.hidden_size
    attend.q_proj(normal(1, 2, width))
    with pytest.raises(RuntimeError, match="different inputs"):
        attend.k_proj(normal(1, 2, width, seed=1))


def test_bf16_gradients_point_where_fp32_ones_do():
    model = adapted()
    kernels.install(model)
    exact = step(model)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = step(model)[1]
    for name, gradient in exact.items():
        assert F.cosine_similarity(half[name].flatten(), gradient.flatten(), 0) > 0.999, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_four_bits(base, precision):
    """Against PEFT's module over bitsandbytes' own product; a scoring pass in between changes nothing."""
    engine = shaken_engine(load(settings(base, quantization="nf4", precision=precision)))
    assert engine.notes["kernels"][0] == FAMILIES["llama-3.2-1b"]
    batch, found = collate(noise(30, 9, 17), range(3)), []
    for plain in (False, True, False):
        with lora.as_peft() if plain else contextlib.nullcontext():
            total, _ = engine.backward(batch)
        found.append((total, {n: p.grad.clone() for n, p in engine.trained.items()}))
        engine.optimization.drop_gradients()
        engine.predict(batch)
    if precision == "fp32":
        same(found[0], found[1])
    else:
        assert found[0][0] == pytest.approx(found[1][0], rel=2e-3)
        for name, gradient in found[1][1].items():
            assert F.cosine_similarity(found[0][1][name].flatten(), gradient.flatten(), 0) > 0.99, (
                name
            )  # both rounded
    same(found[2], found[0], 0.0)


# Attention over packs


def dense(q, k, v, lengths, window=None, scale=None, sinks=None):
    """softmax(QK' s + mask) V with all of the mask written out, in fp64; a sink is one key more, of value zero."""
    q, k, v = (x.double() for x in (q, k, v))
    shared, place = q.shape[1] // k.shape[1], torch.arange(q.shape[2], device=q.device)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(
        q.device
    )
    back = place[:, None] - place[None]
    seen = (document[:, None] == document[None]) & (back >= 0) & (back < (window or q.shape[2]))
    scores = (
        q @ k.repeat_interleave(shared, 1).transpose(2, 3) * (scale or 1 / math.sqrt(q.shape[-1]))
    )
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat(
            [scores, sinks.double()[:, None, None].expand(*scores.shape[:-1], 1)], -1
        )
    return (scores.softmax(-1)[..., : len(place)] @ v.repeat_interleave(shared, 1)).transpose(1, 2)


def attended(
    function, heads, lengths, window, scale, width=8, dtype=torch.float32, device="cpu", sinks=False
):
    """(output, gradients of q, k and v, and of sinks) of one way, the same of the dense one."""
    found, total = [], sum(lengths)
    for way in (function, dense):
        q, k, v = (
            normal(1, h, total, width, seed=s, dtype=dtype, device=device).requires_grad_()
            for s, h in enumerate(heads)
        )
        sunk = normal(heads[0], seed=5, device=device).requires_grad_() if sinks else None
        if way is dense:
            out = dense(q, k, v, lengths, window, scale, sunk)
        else:
            out = function(
                q, k, v, attention.Documents(lengths, q.device), scale, 0.0, window, sunk
            )
        (out * normal(1, total, heads[0], width, seed=4, device=device)).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad, *([sunk.grad] if sinks else [])))
    return zip(*found, strict=True)


LENGTHS = {
    "short": [5, 1, 11],
    "window": [4, 8],
    "around the window": [3, 4, 5, 7, 8, 9, 12, 13],
    "long": [1, 41],
}


@pytest.mark.parametrize("sinks", ["none", "fused", "written out"])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_attention_by_document(monkeypatch, lengths, window, sinks):
    monkeypatch.setattr(
        attention.attention_cpu, "serves_sinks", lambda q, v, dropout: sinks == "fused"
    )
    for heads, scale in (((4, 2, 2), None), ((4, 1, 1), 0.5), ((2, 2, 2), None)):
        for one, other in attended(
            attention.by_document, heads, lengths, window, scale, sinks=sinks != "none"
        ):
            close(one.double(), other.double(), 1e-5, least=0.5)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("short", "block"), [(0, 128), (24, 128), (512, 128), (512, 8)])
def test_attention_by_document_in_bf16(monkeypatch, short, block, window, sinks):
    """By products alone up to `short` tokens, from 1.5 `block` on in blocks."""
    monkeypatch.setattr(attention.attention_cpu, "SHORT", short)
    monkeypatch.setattr(attention.attention_cpu, "BLOCK", block)
    for heads, scale in (((4, 2, 2), None), ((4, 1, 1), 0.5), ((2, 2, 2), None)):
        for one, other in attended(
            attention.by_document,
            heads,
            [5, 24, 1, 25, 40],
            window,
            scale,
            dtype=torch.bfloat16,
            sinks=sinks,
        ):
            assert one.dtype in (torch.bfloat16, other.dtype)
            assert (one - other).norm() < 1e-2 * other.norm()


def test_sinks_far_out():
    """One far above all scores takes everything, one far below nothing; neither overflows."""
    q = normal(1, 3, 9, 8).requires_grad_()
    sinks = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    out = attention.by_document(q, q, q, attention.Documents([9], q.device), None, 0.0, None, sinks)
    without = attention.by_document(q, q, q, attention.Documents([9], q.device), None, 0.0, None)
    out.square().sum().backward()
    assert not out[:, :, 0].any() and torch.equal(out[:, :, 1], without[:, :, 1])
    assert q.grad.isfinite().all() and sinks.grad[:2].tolist() == [0, 0] and sinks.grad[2] != 0


def test_dropout_beside_sinks():
    """On the mean nothing changes; a quarter of the values is dropped, the others grow."""
    q, v, sinks = normal(1, 1, 4, 8), torch.ones(1, 1, 4, 8), torch.zeros(1)
    torch.manual_seed(0)
    documents = attention.Documents([4], q.device)
    many = torch.stack(
        [attention.by_document(q, q, v, documents, None, 0.25, None, sinks) for _ in range(4000)]
    )
    close(many.mean(0), attention.by_document(q, q, v, documents, None, 0.0, None, sinks), 0.03)
    assert float((many[:, 0, 0] == 0).float().mean()) == pytest.approx(
        0.25, abs=0.03
    )  # one key alone


SINKS = {  # all that call their file's eager attention with sinks
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite_swa": {},
    "mimo_v2_flash": {
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}


@pytest.mark.parametrize("kind", SINKS)
def test_sinks_of_a_model_are_those_of_its_eager_attention(kind):
    """Documents around the window, packed by ours, and a line each by transformers' eager attention."""
    config = AutoConfig.for_model(
        kind,
        **{
            **SMALL,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            **SINKS[kind],
        },
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention.NAME, dtype=torch.float32
    )
    sinks = [p for n, p in model.named_parameters() if n.endswith("sinks")]
    for sink in sinks:
        torch.nn.init.normal_(sink)
    lengths = [5, 8, 21, 1, 9]
    rows = [
        torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths
    ]
    places = torch.cat([torch.arange(n) for n in lengths])
    with attention.packed():
        packed = model(
            input_ids=torch.cat(rows)[None],
            position_ids=places[None],
            use_cache=False,
            documents=attention.Documents(lengths, places.device),
        ).logits[0]
    packed.square().sum().backward()
    mine = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.set_attn_implementation("eager")
    eager = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
    eager.square().sum().backward()
    close(packed, eager, 1e-5)
    assert len(mine) > 10 and all(s.grad.abs().max() > 0 for s in sinks)
    for one, p in zip(mine, (p for p in model.parameters() if p.grad is not None), strict=True):
        assert (one - p.grad).norm() <= 1e-5 * p.grad.norm()
    model.set_attn_implementation(
        attention.NAME
    )  # and padded, or with nothing hidden, it is that attention itself
    with torch.no_grad():
        ids, seen = torch.stack([rows[2], rows[2].flip(0)]), torch.ones(2, 21, dtype=torch.long)
        for mask in (None, seen, seen.clone().index_fill_(1, torch.arange(4), 0)):
            found = []
            for name in (attention.NAME, "eager"):
                model.set_attn_implementation(name)
                found.append(model(input_ids=ids, attention_mask=mask).logits[:, 4:])
            close(*found)


@pytest.mark.parametrize(
    ("window", "dtype"), [(None, torch.float32), (16, torch.float32), (None, torch.bfloat16)]
)
def test_attention_costs_what_its_documents_cost(window, dtype):
    """No tensor of (N, N), and four times the documents make four times the numbers."""
    made = {}
    for number in (4, 16):
        total = 64 * number
        q, k, v = (normal(1, h, total, 8, dtype=dtype).requires_grad_() for h in (4, 2, 2))
        with Made() as seen:
            documents = attention.Documents([64] * number, q.device)
            attention.by_document(q, k, v, documents, None, 0.0, window).sum().backward()
        assert max(seen.sizes) <= 4 * max(8 * total, 64 * 64) < total**2
        made[number] = sum(seen.sizes)
    assert made[16] == pytest.approx(4 * made[4], rel=0.05)


def test_no_model_makes_a_mask_over_a_pack(base):
    """Forward and backward of a whole model: nothing as large as (N, N) but the head's logits."""
    engine = load(settings(base))
    batch = collate(noise(*[32] * 40), range(40))
    engine.losses.head["weight"].requires_grad_(False)
    with Made() as seen:
        engine.backward(batch)
    tokens = len(batch.ids)
    assert max(n for n in seen.sizes if n != batch.count * 300) < tokens**2 / 4


def test_a_mask_of_the_models_own_is_refused():
    q = normal(1, 2, 6, 8)
    with pytest.raises(ValueError, match="brings a mask of its own"):
        attention.packed_attention(
            torch.nn.Linear(1, 1),
            q,
            q,
            q,
            torch.ones(6, 6),
            documents=attention.Documents([4, 2], q.device),
        )


@pytest.mark.gpu
@on_card
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        ("flash", torch.bfloat16),
        ("flash", torch.float16),
        ("efficient", torch.float16),
        ("efficient", torch.bfloat16),
        ("efficient", torch.float32),
        ("by_document", torch.float32),
    ],
)
def test_attention_on_a_card(way, dtype, lengths, window, sinks):
    if way == "flash" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention 2 needs compute capability 8.0")
    for heads, scale in (((4, 2, 2), None), ((4, 1, 1), 0.25), ((2, 2, 2), None)):
        for one, other in attended(
            getattr(attention, way), heads, lengths, window, scale, 64, dtype, "cuda", sinks
        ):
            close(one.double(), other.double(), 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.gpu
@on_card
def test_the_way_chosen_on_a_card():
    capability = torch.cuda.get_device_capability()
    half, whole = (
        normal(1, 2, 6, 64, dtype=d, device="cuda") for d in (torch.float16, torch.float32)
    )
    assert attention.form(half, half) is (
        attention.flash if capability >= (8, 0) else attention.efficient
    )
    assert attention.form(whole, whole) is attention.efficient
    assert attention.form(whole[..., :61], whole[..., :61]) is attention.by_document


@pytest.mark.gpu
@on_card
@pytest.mark.parametrize("count", [1, 61])
def test_the_loss_of_a_head_on_a_card(monkeypatch, count):
    monkeypatch.setattr(loss, "CHUNK", 1)
    found = []
    for function in (loss.linear_cross_entropy, plain_loss):
        hidden, weight = (
            normal(n, 24, seed=n, device="cuda").requires_grad_() for n in (count, 90)
        )
        total = function(hidden, weight, torch.arange(count, device="cuda"), 0.5, 3.0)
        total.backward()
        found.append((total.detach(), hidden.grad, weight.grad))
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-5)


@pytest.mark.gpu
@on_card
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_on_a_card(name):
    model = adapted(name)
    plain = step(model)
    kernels.install(model)
    same(step(model), plain)
    on = model.cuda()
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(3)).cuda()
    on.zero_grad(set_to_none=True)
    total = on(input_ids=ids, labels=ids, use_cache=False).loss
    total.backward()
    gradients = {n: p.grad.cpu() for n, p in on.named_parameters() if p.grad is not None}
    same((float(total.detach()), gradients), plain, 1e-3)


# What follows from computing together


def test_sixteen_answers_together_take_a_fifth_of_their_time_one_by_one(base):
    """CPU seconds; 6 times faster at 42 M parameters, 80 tokens asked and 128 answered."""
    engine, spent = load(settings(base)), []
    prompts = [row["ids"] for row in noise(*range(20, 36))]
    engine.generate(prompts[:1], 2, [])
    for groups in ([prompts], [[p] for p in prompts]):
        begin = time.process_time()
        answers = [a for group in groups for a in engine.generate(group, 24, [])]
        spent.append(time.process_time() - begin)
        assert [len(a) for a in answers] == [24] * 16
    assert spent[1] > 5 * spent[0]


def test_answers_copy_the_head_for_no_row(base):
    """torch multiplies a slice of hidden states, (16, 1, 64), by 16 copies of the head, 300 x 64."""
    engine = load(settings(base))
    with Made() as seen:
        engine.generate([row["ids"] for row in noise(*range(20, 36))], 2, [])
    assert max(seen.sizes) < 16 * 300 * 64 / 2


def test_packs_of_nearly_one_length_share_their_kernels(base):
    """In bf16 a pack has a multiple of 32 tokens, filled up with what nothing sees and nothing is learnt from."""
    rows = noise(20, 11, 9)
    engine = load(settings(base, precision="bf16", dropout=0.0))
    shapes, found = [], []
    engine.model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: shapes.append(out.shape[1])
    )
    for some in (rows, rows[:2], rows[:1]):
        batch = collate(some, range(len(some)))
        found.append(engine.predict(batch)[0])
        total, count = engine.backward(batch)
        assert (total, count) == (pytest.approx(engine.loss(batch)[0], rel=1e-2), batch.count)
    assert shapes == [64, 64, 64, 32, 32, 32, 32, 32, 32]
    assert found[0] == pytest.approx(found[1], rel=1e-2) and found[0] == pytest.approx(
        found[2], rel=1e-2
    )
    plain = load(settings(base))
    plain.model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: shapes.append(out.shape[1])
    )
    plain.predict(collate(rows, range(3)))
    assert shapes[9:] == [40]


def test_documents_of_nearly_one_length_share_their_kernels():
    """oneDNN makes a kernel for each new shape, which takes longer than the product itself."""
    seen = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "bmm" in str(function):
                seen[-1].append([tuple(x.shape) for x in args if torch.is_tensor(x)])
            return function(*args, **kwargs or {})

    for length in (65, 72, 80, 81):
        seen.append([])
        q, k, v = (
            normal(1, heads, length, 16, dtype=torch.bfloat16).requires_grad_()
            for heads in (4, 2, 2)
        )
        with Shapes():
            out = attention.by_document(
                q, k, v, attention.Documents([length], q.device), None, 0.0, None
            )
            out.sum().backward()
    assert len(seen[0]) == 6 and seen[0] == seen[1] == seen[2] != seen[3]
