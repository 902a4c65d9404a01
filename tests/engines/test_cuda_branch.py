"""The torch engine as it runs on a card, on a CPU: wrong results and lost memory that a first card would meet."""

import gc
import re
import weakref

import numpy as np
import pytest
import torch
from helpers.cuda_reference import CARDS, claimed
from helpers.engines import SMALL, batches, history, learnable, noise, settings, shaken
from helpers.models import save_base
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config

from lorakit.common.errors import LorakitError
from lorakit.engines.torch import generation, load, packing_trial
from lorakit.engines.torch.kernels import fp8
from lorakit.engines.torch.out_of_memory import out_of_memory
from lorakit.engines.torch.passes import Passes
from lorakit.tasks.batches import Batches, collate


def full_card():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("llama"), LlamaConfig(**SMALL))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("qwen"), Qwen3Config(**SMALL))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """One layer that sees 16 tokens back, one that sees all."""
    config = Gemma3TextConfig(
        **SMALL
        | {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "initializer_range": 0.2,
        }
    )
    return save_base(tmp_path_factory.mktemp("gemma"), config)


def gradients(engine):
    return torch.cat([engine.trained[n].grad.flatten() for n in sorted(engine.trained)])


# Results


@pytest.mark.parametrize("lengths", [(14, 12), (60, 50)], ids=str)
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_adapters_gradients_beyond_a_sliding_window(gemma, card, lengths):
    """fp32 takes the memory-efficient kernel on every card."""
    found = []
    for capability in (None, card):
        with claimed(capability):
            engine = shaken(load(settings(gemma)))
            assert engine.packing
            loss, _ = engine.backward(collate(noise(*lengths), range(2)))
            found.append((float(loss), gradients(engine)))
    (loss, gradient), (other_loss, other) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert (gradient - other).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize(
    ("card", "precision"), [((7, 5), "fp16"), ((9, 0), "fp16"), ((9, 0), "bf16")]
)
def test_full_fine_tuning_in_16_bits_is_packed(llama, card, precision):
    """Angles in fp32 must not meet values in 16 bits in one kernel; the losses are those of fp32."""
    rows = learnable(32)
    plain = load(settings(llama, method="full"))
    expected = [u["loss"] for u in history(plain, batches(rows, plain, updates=4), rate=1e-4)]
    with claimed(card) as calls:
        engine = load(settings(llama, method="full", precision=precision))
        assert engine.packing, engine.notes["packing"]
        losses = [u["loss"] for u in history(engine, batches(rows, engine, updates=4), rate=1e-4)]
        assert {dtype for _, dtype, _ in calls} == {engine.passes.autocast}
    assert losses == pytest.approx(expected, rel=2e-2)


def test_packing_on_a_cpu_in_bf16_with_full_fine_tuning(llama):
    assert load(settings(llama, method="full", precision="bf16")).packing


def test_fp16_with_a_process_that_has_no_row(llama):
    """17 rows in batches of 8 by two processes: the second has nothing to do in the last update."""
    engine, rows = load(settings(llama, precision="fp16")), learnable(17)
    pieces = Batches(
        rows,
        np.array([len(r["ids"]) for r in rows]),
        global_batch_size=8,
        micro_batch_size=8,
        micro_batch_tokens=4096,
        packing=True,
        seed=0,
        epochs=1,
        rank=1,
        processes=2,
    )
    assert [m.idle for m in pieces[2]] == [True]
    engine.restore(engine.state())  # as a resumed run begins
    engine.backward(pieces[2][0])
    for parameter in engine.trained.values():  # `reduce` does this for what has no gradient
        parameter.grad = torch.zeros_like(parameter)
    norm, skipped = engine.update(1e-4, 5)
    assert norm == 0 and not skipped


def test_the_scale_comes_back_with_a_state(llama):
    one, two = (load(settings(llama, precision="fp16")) for _ in range(2))
    one.optimization.scaler.update(512.0)
    two.restore(one.state())
    assert two.optimization.scaler.get_scale() == 512.0


# Memory


def test_out_of_memory_frees_the_failed_graph(qwen):
    """q_norm runs between q_proj, which has computed k and v as well, and their use."""
    engine = load(settings(qwen))
    layers, kept = engine._bare().model.layers, []

    class Token:
        pass

    def watch(module, given, out):  # a hook lives as long as the node of the graph
        token = Token()
        kept.append(weakref.ref(token))
        (out[0] if isinstance(out, tuple) else out).register_hook(lambda g, token=token: None)

    layers[0].register_forward_hook(watch)
    norm, down = layers[1].self_attn.q_norm, engine._step_down
    plain, alive = norm.forward, []

    def full(x):
        norm.forward = plain
        raise full_card()

    def look():
        down()
        gc.collect()
        alive.append(kept[0]() is not None)

    norm.forward, engine._step_down = full, look
    engine.backward(collate(noise(30, 40, 20), range(3)))
    assert alive == [False] and engine.steps == ["at most 45 tokens at a time"]


@pytest.mark.parametrize("where", [(packing_trial, "last_logits"), (Passes, "hidden")])
def test_out_of_memory_while_loading_is_called_that(monkeypatch, llama, where):
    def full(self, *args, **kwargs):
        raise full_card()

    monkeypatch.setattr(*where, full)
    with pytest.raises(LorakitError, match="out of memory while the model was loaded"):
        load(settings(llama))


def test_the_trial_of_packing_computes_few_logits(monkeypatch, gemma):
    """Past the window, but 24 tokens' logits: a vocabulary of 262,144 in fp32 is 1 MB a token."""
    seen, plain = [], torch.nn.Linear.forward

    def forward(self, x):
        if self.out_features == SMALL["vocab_size"]:
            seen.append(x.numel() // x.shape[-1])
        return plain(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    assert load(settings(gemma)).packing and seen and max(seen) <= 24


def test_close_gives_everything_back(llama):
    engine = load(settings(llama, quantization="nf4"))
    alive = {n: weakref.ref(p) for n, p in engine.model.named_parameters()}
    engine.close()
    assert [n for n, p in alive.items() if p() is not None] == []


def test_fp8_replaces_layer_by_layer(monkeypatch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64, bias=False) for _ in range(6))
            self.lm_head = torch.nn.Linear(64, 64)

        def get_output_embeddings(self):
            return self.lm_head

    model, most, plain = Model().bfloat16(), [], fp8.quantized
    old = [weakref.ref(layer.weight) for layer in model.layers[1:]]  # the first stays whole

    def quantized(x):
        most.append(sum(weight() is not None for weight in old))
        return plain(x)

    monkeypatch.setattr(fp8, "quantized", quantized)
    fp8.install(model, model.layers[0])
    assert most[::2] == [5, 4, 3, 2, 1]


def test_peak_memory_is_of_training(monkeypatch, llama):
    """What answering took is reported apart, and does not stay in the lines of the history."""
    engine = load(settings(llama))
    peak, plain = [100], generation.generate
    monkeypatch.setattr(engine.peak, "read", lambda: peak[0])
    monkeypatch.setattr(engine.peak, "forget", lambda: peak.__setitem__(0, 60))

    def generate(*given, **options):
        peak[0] = 900
        return plain(*given, **options)

    monkeypatch.setattr(generation, "generate", generate)
    engine.generate([[1, 2, 3]], 2, [])
    assert (engine.memory(), engine.generation_memory()) == (100, 900)
    peak[0] = 300
    assert engine.memory() == 300


def test_memory_that_lacks_while_looking_for_the_layer(monkeypatch, llama):
    engine = load(settings(llama))

    def full(batch):
        raise full_card()

    monkeypatch.setattr(engine, "_backward", full)
    words = engine.first_nonfinite_layer([collate(noise(9, 8), range(2))])
    assert re.search("no memory to look", words)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (full_card(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=lambda x: str(x)[:40],
)
def test_which_errors_are_of_memory(error, expected):
    assert out_of_memory(error) is expected


@pytest.mark.parametrize("message", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory"])
def test_other_errors_of_memory_step_down_too(monkeypatch, llama, message):
    engine, rows = load(settings(llama)), noise(30, 40, 20)
    expected, _ = engine.backward(collate(rows, range(3)))
    engine.optimization.drop_gradients()
    engine.pending.clear()
    plain, calls = engine.passes.hidden, []

    def once(batch):
        calls.append(len(batch.ids))
        if len(calls) == 1:
            raise RuntimeError(message)
        return plain(batch)

    monkeypatch.setattr(engine.passes, "hidden", once)
    loss, _ = engine.backward(collate(rows, range(3)))
    assert engine.steps and float(loss) == pytest.approx(float(expected), rel=1e-5)
    expected, _ = engine.loss(collate(rows, range(3)))
    calls.clear()
    loss, _ = engine.loss(collate(rows, range(3)))
    assert loss == pytest.approx(expected, rel=1e-5) and len(calls) > 1


def test_out_of_memory_in_the_optimizer_changes_nothing(monkeypatch, llama):
    """Its state is there from the start: an update is not left half done."""
    engine = load(settings(llama))
    assert {frozenset(s) for s in engine.optimization.optimizer.state.values()} == {
        frozenset({"step", "exp_avg", "exp_avg_sq"})
    }
    assert len(engine.optimization.optimizer.state) == len(engine.trained)
