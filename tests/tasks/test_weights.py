"""A weight of 2 doubles the gradient; a weight of 1 changes nothing."""

import numpy as np
import pytest
from helpers.engines import noise, settings

from lorakit.engines.torch import load
from lorakit.tasks.batches import collate


def gradients(base, rows, **changes):
    import torch

    torch.manual_seed(0)
    engine = load(settings(base, **changes))
    loss, count = engine.backward(collate(rows, range(len(rows))))
    out = {n: p.grad.clone().numpy() for n, p in engine.trained.items() if p.grad is not None}
    engine.close()
    return loss, count, out


@pytest.mark.parametrize("weight", [2.0, 0.25])
def test_a_weight_scales_loss_and_gradient(base, weight):
    rows = noise(20, 31)
    plain = gradients(base, rows)
    weighted = gradients(base, [{**r, "weights": [weight] * len(r["ids"])} for r in rows])
    assert weighted[1] == plain[1]
    assert weighted[0] == pytest.approx(weight * plain[0], rel=1e-6)
    for name, value in plain[2].items():
        np.testing.assert_allclose(
            weighted[2][name], weight * value, rtol=1e-5, atol=1e-6 * abs(value).max()
        )


def test_rows_without_weights_count_once_beside_others(base):
    rows = noise(20, 31)
    plain = gradients(base, rows)
    mixed = gradients(base, [rows[0], {**rows[1], "weights": [1.0] * 31}])
    assert mixed[0] == pytest.approx(plain[0], rel=1e-6)


def test_a_batch_keeps_its_weights_when_it_is_parted():
    rows = noise(4, 6)
    batch = collate([{**rows[0], "weights": [2.0] * 4}, rows[1]], [0, 1])
    assert batch.weights.tolist() == [2.0] * 4 + [1.0] * 6
    assert [part.weights.tolist() for part in batch.parts(6)] == [[2.0] * 4, [1.0] * 6]
