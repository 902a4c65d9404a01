"""Variants of LoRA: PiSSA, OLoRA, LoRA+, NEFTune, chosen layers, trained embeddings, Muon; and what cannot go together."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.engines import batches, history, learnable, settings

from lorakit import engines
from lorakit.common.errors import LorakitError
from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import lora
from lorakit.models import merge
from lorakit.planning import choose
from lorakit.run import Run
from lorakit.tasks.batches import collate


def batch(n=4):
    rows = learnable(n)
    return collate(rows, range(n))


def curve(engine, updates=6, micro=8):
    return [
        line["loss"] for line in history(engine, batches(learnable(48), engine, micro, updates))
    ]


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_logits_at_update_0_are_the_bases(base, init, rslora):
    plain = load(settings(base))
    engine = load(settings(base, adapter_init=init, use_rslora=rslora, rank=4))
    with torch.no_grad(), engine.passes.evaluating():
        apart = (engine.passes.logits(batch()) - plain.passes.logits(batch())).abs().max()
    assert apart < (1e-4 if init == "olora" else 1e-5)  # 64 / 4 scales what rounding leaves
    if init != "gaussian":
        assert all(np.abs(w).max() > 0 for w in engine.weights().values())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_is_saved_fits_the_base_as_it_is(base, tmp_path, init):
    """Plain PEFT on the untouched base says what the engine says; so does the merged model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    engine = load(settings(base, adapter_init=init, rank=4, use_rslora=init == "olora"))
    losses = curve(engine)
    assert losses[-1] < losses[0]
    saved = engine.save(tmp_path / "adapter")
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    said = engine.predict(batch())
    again = load(settings(base), adapter=saved)
    np.testing.assert_allclose(again.predict(batch()), said, atol=1e-4)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), saved)
    ids = torch.tensor([learnable(1)[0]["ids"]])
    plain = tuned(input_ids=ids).logits
    whole = merge.merge(AutoModelForCausalLM.from_pretrained(base), saved, "fp32", base)
    torch.testing.assert_close(whole(input_ids=ids).logits, plain, atol=1e-4, rtol=1e-4)


def test_eva_begins_with_the_directions_of_the_rows(base, tmp_path):
    """A is orthonormal and spans the inputs' first singular directions; B is zero, so nothing has changed yet."""
    plain, engine = load(settings(base, rank=4)), load(settings(base, rank=4, adapter_init="eva"))
    some = batches(learnable(48), engine, updates=4)
    engine.begin_with([b for i in range(4) for b in some[i]])
    np.testing.assert_array_equal(engine.predict(batch()), plain.predict(batch()))
    name = next(n for n in engine.trained if "layers.1.mlp.down_proj.lora_A" in n)
    a = engine.weights()[name]
    np.testing.assert_allclose(a @ a.T, np.eye(4), atol=1e-4)
    seen = []
    layer = engine.model.get_submodule(name.removesuffix(".lora_A.default.weight"))
    hook = layer.register_forward_hook(
        lambda m, i, o: seen.append(i[0].reshape(-1, i[0].shape[-1]))
    )
    with torch.no_grad(), lora.as_peft(), engine.passes.evaluating():
        for i in range(4):
            for one in some[i]:
                engine.passes.hidden(one)
    hook.remove()
    inputs = torch.cat(seen)
    kept = [
        float((inputs @ torch.from_numpy(w).T).square().sum()) for w in (a, plain.weights()[name])
    ]
    norms = np.square(plain.weights()[name]).sum() / 4
    assert kept[0] > 3 * kept[1] / norms  # of the inputs' energy, beside four random directions
    losses = curve(engine)
    assert losses[-1] < losses[0]
    saved = engine.save(tmp_path / "adapter")
    np.testing.assert_allclose(
        load(settings(base), adapter=saved).predict(batch()), engine.predict(batch()), atol=1e-4
    )


def test_lora_plus_gives_b_a_rate_of_its_own(base):
    one, two = (load(settings(base, loraplus_ratio=r)) for r in (1.0, 16.0))
    starts = one.weights()
    for engine in (one, two):
        history(engine, batches(learnable(48), engine, updates=1), rate=1e-4)
    for name, start in starts.items():
        steps = [np.abs(e.weights()[name] - start).max() for e in (one, two)]
        wanted = 16 if ".lora_B." in name else 1
        assert steps[1] == pytest.approx(steps[0] * wanted, rel=1e-3, abs=1e-9)


def test_neftune_adds_noise_in_training_alone(base):
    plain = load(settings(base))
    noisy = load(settings(base, neftune_alpha=5.0))
    padded = load(settings(base, neftune_alpha=5.0, packing=False))
    np.testing.assert_array_equal(noisy.predict(batch()), plain.predict(batch()))
    first = [float(e.backward(batch())[0]) for e in (plain, noisy, noisy, padded)]
    assert first[1] == first[2] != first[0] and first[3] != first[0]
    seen = []
    noisy.model.get_input_embeddings().register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        noisy.noise.batch, noisy.noise.packed = batch(), True
        noisy.passes.hidden(batch())
        noisy.noise.batch = None
        noisy.passes.hidden(batch())
    apart = (seen[0] - seen[1]).abs()[0]
    bounds = 5.0 / np.sqrt(np.repeat(batch().lengths, batch().lengths) * apart.shape[-1])
    assert (apart[: len(bounds)].amax(1).numpy() <= bounds + 1e-6).all()
    assert apart.max() > 0.5 * bounds.max()


def test_chosen_layers_alone_get_an_adapter(base):
    engine = load(settings(base, layers_to_transform=[1]))
    assert engine.trained and all(".layers.1." in name for name in engine.trained)
    with pytest.raises(LorakitError, match="layers_to_transform"):
        load(settings(base, layers_to_transform=[7]))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_head_are_trained_saved_and_merged(tmp_path, tied):
    from helpers.engines import SMALL
    from helpers.models import save_base
    from transformers import AutoModelForCausalLM, LlamaConfig

    base = save_base(tmp_path / "base", LlamaConfig(**SMALL, tie_word_embeddings=tied))
    engine = load(settings(base, train_embeddings=True))
    whole = {
        n.split(".modules_to_save")[0].split(".")[-1]
        for n in engine.trained
        if "modules_to_save" in n
    }
    assert whole == {"embed_tokens", "lm_head"} and engine.losses.head is not None
    before = engine.weights()
    losses = curve(engine)
    assert losses[-1] < losses[0]
    assert all((engine.weights()[n] != before[n]).any() for n in before)
    saved, said = engine.save(tmp_path / "adapter"), engine.predict(batch())
    np.testing.assert_allclose(
        load(settings(base), adapter=saved).predict(batch()), said, atol=1e-4
    )
    merged = merge.merge(AutoModelForCausalLM.from_pretrained(base), saved, "fp32", base)
    merged.save_pretrained(tmp_path / "merged")
    engine.tokenizer.save_pretrained(tmp_path / "merged")
    again = load(settings(str(tmp_path / "merged")))
    np.testing.assert_allclose(again.predict(batch()), said, atol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "kept"), [("muon", "/momentum_buffer"), ("adamw_schedule_free", "/z")]
)
def test_other_optimizers_learn_and_resume_bit_for_bit(base, optimizer, kept):
    run = settings(base, optimizer=optimizer, schedule="constant")
    engine = load(run)
    losses = curve(engine)
    assert losses[-1] < losses[0] and all(np.isfinite(losses))
    state = {name: np.array(value) for name, value in engine.state().items()}
    assert any(key.endswith(kept) for key in state)
    again = load(run)
    again.restore(state)
    for each in (engine, again):
        each.update(1e-3, each.backward(batch())[1])
    assert all((engine.weights()[n] == w).all() for n, w in again.weights().items())


def test_schedule_free_keeps_the_average_between_updates(base):
    """Beside schedulefree's own optimizer: the gradients of its `train` weights, the weights of its `eval`."""
    from schedulefree import AdamWScheduleFree

    engine = load(settings(base, optimizer="adamw_schedule_free", schedule="constant"))
    own = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in engine.weights().values()]
    plain = AdamWScheduleFree(own, lr=1e-3)
    for _ in range(3):
        count = engine.backward(batch())[1]
        plain.train()
        for mine, parameter in zip(own, engine.trained.values(), strict=True):
            torch.testing.assert_close(mine.data, parameter.data, atol=1e-6, rtol=1e-5)
            mine.grad = parameter.grad * engine.optimization.unit / count
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        engine.update(1e-3, count)
        plain.step()
        plain.eval()
    for mine, weight in zip(own, engine.weights().values(), strict=True):
        np.testing.assert_allclose(weight, mine.detach().numpy(), atol=1e-6)


def test_a_missing_schedulefree_is_named_before_training(monkeypatch):
    from helpers.paths import ROOT

    from lorakit.machine import packages
    from lorakit.planning.setup import setup

    packages.require.cache_clear()
    real = packages.installed
    monkeypatch.setattr(packages, "installed", lambda n: None if n == "schedulefree" else real(n))
    run = Run(data=str(ROOT / "data/triage.jsonl"), max_rows=40, optimizer="adamw_schedule_free", schedule="constant")  # fmt: skip
    with pytest.raises(LorakitError, match="schedulefree is not installed") as error:
        setup(run)
    assert "pip install" in error.value.cure


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"adapter_init": "pissa", "quantization": "nf4"}, "adapter_init='pissa' and quantization='nf4'"),
        ({"adapter_init": "olora", "use_dora": True}, "adapter_init='olora' and use_dora=True"),
        ({"adapter_init": "pissa", "fake_quantization": "q8_0"}, "adapter_init='pissa' and fake_quant"),
        ({"adapter_init": "pissa", "method": "full"}, "method='full' and adapter_init='pissa'"),
        ({"loraplus_ratio": 16, "method": "full"}, "method='full' and loraplus_ratio"),
        ({"optimizer": "muon", "method": "full"}, "optimizer='muon' and method='full'"),
        ({"optimizer": "adamw_schedule_free"}, "optimizer='adamw_schedule_free' and schedule='cosine'"),
        ({"optimizer": "muon", "use_dora": True}, "optimizer='muon' and use_dora=True"),
        ({"train_embeddings": True, "fake_quantization": "q8_0"}, "train_embeddings=True and fake_q"),
        ({"layers_to_transform": []}, "leaves no layer to train"),
        ({"layers_to_transform": [-1]}, "greater than or equal to 0"),
        ({"adapter_init": "loftq"}, "adapter_init='loftq'.*into the unquantized weights"),
        ({"neftune_alpha": 0}, "greater than 0"),
        ({"loraplus_ratio": 0.5}, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused(given, words):
    with pytest.raises(LorakitError, match=words):
        Run(data="-", **given)


def test_engines_without_variants_refuse_by_name():
    run = Run(data="-", adapter_init="pissa", neftune_alpha=5)
    assert choose.lacks(engines.get("mlx"), run) == "it has no adapter_init"
    assert choose.lacks(engines.get("torch"), run) == ""
    assert choose.lacks(engines.get("mlx"), Run(data="-")) == ""


@pytest.mark.parametrize("optimizer", ["muon", "adamw_schedule_free"])
def test_engines_without_an_optimizer_refuse_by_name(optimizer):
    run = Run(data="-", optimizer=optimizer, schedule="constant")
    assert choose.lacks(engines.get("mlx"), run) == f"it has no {optimizer}"
    assert choose.lacks(engines.get("torch"), run) == ""
