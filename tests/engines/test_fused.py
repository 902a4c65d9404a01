"""Passes made one by torch.compile: they compute what the plain ones do, and a machine without a compiler says so."""

import pytest
import torch
from helpers.engines import batches, history, settings

from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import fused, gated, norm, rotary

CPU = torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch):
    """All passes compiled, however few their values are."""
    monkeypatch.setattr(fused, "MANY", 1)
    done, why = fused.switch(True, CPU)
    if not done and "compiler" in why:
        pytest.skip(why)
    assert done, why
    yield
    fused.switch(False, CPU)


def normal(*shape, seed, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def copies(given, dtype=None):
    """Of tensors, which a pass may use up."""
    return [t.to(dtype or t.dtype, copy=True) if torch.is_tensor(t) else t for t in given]


def test_one_loop_computes_what_the_passes_do(compiled):
    scale = normal(24, seed=3, dtype=torch.float32)
    for rows_ in (37, 200):  # one kernel for both
        x, dy, g = (normal(rows_, 24, seed=s) for s in range(3))
        inverse = norm.forward.__wrapped__(x, scale, 1e-6)[1]
        for call, given in (
            (norm.forward, (x, scale, 1e-6)),
            (norm.backward, (dy, x, inverse, scale)),
            (gated.forward, (x, g, "silu")),
            (gated.backward, (dy, x, g, "silu")),
            (rotary.turned, (x, dy, g)),
            (gated.forward, (x, g, "gelu_tanh")),
            (gated.backward, (dy, x, g, "gelu_tanh")),
        ):
            found, exact = call(*copies(given)), call.__wrapped__(*copies(given, torch.float32))
            for mine, theirs in zip(
                found if isinstance(found, tuple) else [found],
                exact if isinstance(exact, tuple) else [exact],
            ):
                assert (
                    mine.float() - theirs
                ).norm() < 3e-3 * theirs.norm()  # one rounding to eight bits


def test_one_curve_when_compiled(base, rows, curve, compiled):
    engine = load(settings(base, compile=True))
    assert engine.notes["compile"][0] is True
    lines = history(engine, batches(rows, engine))
    assert [line["loss"] for line in lines] == pytest.approx(
        [line["loss"] for line in curve[0]], abs=1e-5
    )
    assert load(settings(base)).notes.get("compile") is None and not fused.wanted()


def test_why_nothing_is_compiled(base, monkeypatch):
    assert fused.switch(False, CPU) == (False, "not asked for")
    assert fused.switch(True, torch.device("mps")) == (False, "torch.compile is not used on mps")

    def without_compiler(*given, **more):
        raise RuntimeError("No working C++ compiler found\nlooked for g++")

    monkeypatch.setattr(torch, "compile", without_compiler)
    engine = load(settings(base, compile=True))
    assert engine.notes["compile"] == (
        False,
        "torch.compile fails here: No working C++ compiler found",
    )
    x = normal(4, 16, seed=0)
    assert torch.equal(
        norm.forward(x, torch.ones(16), 1e-6)[0],
        norm.forward.__wrapped__(x, torch.ones(16), 1e-6)[0],
    )
    full = load(settings(base, compile=True, method="full"))
    assert full.notes["compile"] == (False, "method=full trains the model's own modules")


def test_a_pass_that_cannot_be_compiled_goes_on_as_it_is_written(compiled):
    def backend(graph, given):
        raise NotImplementedError("no kernel for this")

    made = []
    call = fused.one_pass(lambda x: x.mul_(2))
    with pytest.MonkeyPatch.context() as patch:
        plain = torch.compile
        patch.setattr(
            torch, "compile", lambda f, **more: made.append(f) or plain(f, backend=backend, **more)
        )
        with pytest.warns(UserWarning, match="goes on uncompiled: .*no kernel for this"):
            assert call(torch.ones(4)).tolist() == [2.0] * 4
        assert call(torch.ones(4)).tolist() == [2.0] * 4 and len(made) == 1


def test_few_values_are_not_worth_a_kernel(compiled, monkeypatch):
    monkeypatch.setattr(fused, "MANY", 2**15)
    seen = []
    call = fused.one_pass(lambda x: seen.append(type(x)) or x + 1)
    call(torch.ones(8))
    call(torch.ones(2**15, device="meta"))
    assert (
        seen == [torch.Tensor] * 2
    )  # by the plain function, which torch.compile would trace with others


def test_rotary_positions_of_a_models_file(compiled):
    from transformers.models.cohere import modeling_cohere
    from transformers.models.llama import modeling_llama

    plain = getattr(
        modeling_llama.apply_rotary_pos_emb, "plain", modeling_llama.apply_rotary_pos_emb
    )
    assert rotary.same(plain) and not rotary.same(
        modeling_cohere.apply_rotary_pos_emb
    )  # its pairs are neighbours
    apply, found = rotary.served(plain), []
    cos, sin = normal(2, 1, 7, 16, seed=5, dtype=torch.float32)
    for way in (apply, plain):
        q, k = (
            normal(1, heads, 7, 16, seed=heads, dtype=torch.float32).requires_grad_()
            for heads in (4, 2)
        )
        out = way(q, k, cos, sin)
        sum((o * normal(*o.shape, seed=9, dtype=torch.float32)).sum() for o in out).backward()
        found.append([*out, q.grad, k.grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))
    asked = rotary.served(lambda *given, **more: "the plain one")
    assert (
        asked(q, k, cos[..., :8], sin[..., :8])
        == asked(q, k, cos, sin, unsqueeze_dim=2)
        == "the plain one"
    )
    assert asked(q, k, cos, sin) != "the plain one"
    fused.switch(False, CPU)
    assert asked(q, k, cos, sin) != "the plain one"
    with torch.no_grad():
        assert asked(q, k, cos, sin) == "the plain one"
