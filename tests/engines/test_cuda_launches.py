"""What an update asks of a card, counted on a CPU: launches of a layer, and waits."""

import pytest
from helpers.cuda_reference import claimed
from helpers.engines import SMALL, noise, settings
from helpers.launches import Launches
from helpers.models import save_base
from transformers import LlamaConfig

from lorakit.engines.torch import load
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
    assert many.total - few.total <= 0.7 * BEFORE[precision]
    assert update_many.total == update_few.total
    assert not many.waits and not update_many.waits  # but the list of loss and norm, in one read
