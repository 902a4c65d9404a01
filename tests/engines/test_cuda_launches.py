"""What an update asks of a card, counted on a CPU: launches of a layer, and waits."""

import numpy as np
import pytest
import torch
from helpers.cuda_reference import claimed
from helpers.engines import SMALL, noise, settings
from helpers.launches import CARD, Copies, Launches
from helpers.models import save_base
from transformers import LlamaConfig

from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import adapted
from lorakit.tasks.batches import collate

# Of a layer, forward and backward, before adapters were cast once an update and norms had kernels of their own;
# and 28 a layer in every update.
BEFORE = {"fp16": 219, "bf16": 219}


def counted(folder, precision, layers):
    config = LlamaConfig(**SMALL | {"num_hidden_layers": layers, "tie_word_embeddings": False})
    with claimed((9, 0)):
        engine = load(settings(save_base(folder, config), precision=precision, quantization="nf4"))
        for _ in range(2):  # the first update makes what the others keep
            with Launches() as passes:
                total, count = engine.backward(collate(noise(30, 40, 20), range(3)))
            with Launches() as update:
                total, count = engine.reduce(total, count)
                engine.update(1e-4, count)
    return passes, update


@pytest.mark.parametrize("precision", BEFORE)
def test_launches_and_waits_of_an_update(tmp_path, precision):
    (few, update_few), (many, update_many) = (
        counted(tmp_path / str(n), precision, n) for n in (2, 3)
    )
    layer, before = many.total - few.total, BEFORE[precision]
    print(f"{precision}: {layer} launches a layer ({before} before), {update_many.total} an update")
    assert layer <= 0.7 * before
    assert update_many.total == update_few.total
    assert not many.waits and not update_many.waits  # but the list of loss and norm, in one read


def test_adapters_are_cast_once_an_update(base, monkeypatch):
    casts, plain = [], adapted.Copies.refresh
    monkeypatch.setattr(
        adapted.Copies, "refresh", lambda self, dtype: casts.append(dtype) or plain(self, dtype)
    )
    with claimed((9, 0)):
        engine = load(settings(base, precision="bf16"))
        for _ in range(3):
            casts.clear()
            for seed in range(3):
                total, count = engine.backward(collate(noise(30, 20, seed=seed), range(2)))
            engine.update(1e-4, engine.reduce(total, count)[1])
            engine.predict(collate(noise(9), range(1)))  # of the new weights
    assert casts == [
        torch.bfloat16
    ]  # the update's micro-batches had those of the prediction before


def weighted(*lengths):
    rows = noise(*lengths)
    for row in rows:
        row["weights"] = [1.0, 2.0] * (len(row["ids"]) // 2)
    return rows


@pytest.mark.parametrize(
    ("rows", "changes", "of_mask"),
    [
        (noise, {}, 0),
        (noise, {"precision": "bf16"}, 0),
        (weighted, {}, 0),
        (noise, {"neftune_alpha": 5.0}, 0),
        (noise, {"neftune_alpha": 5.0, "packing": False}, 2),
    ],
    ids=["packed", "bf16", "weights", "noise", "padded"],
)
def test_one_wait_an_update(base, rows, changes, of_mask):
    """The list of loss and norm, in one read; what a micro-batch brings comes from pinned memory. Of padded rows
    transformers reads whether any is padded."""
    with claimed((9, 0)):
        engine = load(settings(base, **changes))
        on_cpu = engine.passes.precision()
        engine.device = engine.passes.device = engine.optimization.device = CARD
        engine.passes.precision = lambda: on_cpu
        for _ in range(2):
            with Launches() as seen, Copies() as copies:
                total, count = engine.backward(collate(rows(30, 40, 20), range(3)))
                total, count = engine.reduce(total, count)
                engine.update(1e-4, count)
    assert np.isfinite(total) and copies.free and not copies.waits
    assert seen.waits.total() == of_mask
