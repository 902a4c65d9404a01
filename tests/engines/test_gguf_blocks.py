"""Weights in ggml's blocks: restored as the package `gguf` restores them, and frozen layers that train on them."""

import gguf
import numpy as np
import pytest
import torch

from lorakit.engines.torch.kernels import blocks, lora


def random_blocks(kind, rows, blocks_in_row):
    """Random bytes, but scales that are finite numbers of a common size."""
    _, size, _ = blocks.KINDS[kind]
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (rows * blocks_in_row, size), dtype=np.uint8)
    places = {"q6_k": [208], "q4_0": [0], "q5_0": [0], "q8_0": [0]}.get(kind, [0, 2])
    for at in places:
        stored[:, at : at + 2] = (
            rng.normal(0, 0.02, (len(stored), 1)).astype(np.float16).view(np.uint8)
        )
    return stored.reshape(rows, -1)


@pytest.mark.parametrize("kind", blocks.KINDS)
def test_blocks_are_restored_bit_for_bit(kind):
    stored = random_blocks(kind, 6, 3)
    expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind.upper()])
    found = blocks.dequantized(torch.from_numpy(stored), kind).numpy()
    assert found.shape == expected.shape == (6, 3 * blocks.KINDS[kind][0])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_layer_computes_and_derives_as_a_dense_one(dtype):
    stored, dense = torch.from_numpy(random_blocks("q4_k", 24, 2)), torch.nn.Linear(512, 24)
    layer = blocks.Linear(dense, stored, "q4_k")
    dense.weight.data = blocks.dequantized(stored, "q4_k")
    x = torch.randn(5, 7, 512, generator=torch.Generator().manual_seed(0))
    one, two = (x.to(dtype).requires_grad_() for _ in range(2))
    y, reference = (
        layer(one),
        torch.nn.functional.linear(two, dense.weight.to(dtype), dense.bias.to(dtype)),
    )
    y.square().sum().backward()
    reference.square().sum().backward()
    assert torch.equal(y, reference) and torch.equal(one.grad, two.grad)
    assert layer.weight.dtype == torch.uint8 and not layer.weight.requires_grad


def test_inside_standing_a_weight_is_restored_once():
    layer = blocks.Linear(
        torch.nn.Linear(64, 8), torch.from_numpy(random_blocks("q8_0", 8, 2)), "q8_0"
    )
    with lora.standing():
        assert layer.dense(torch.float32) is layer.dense(torch.float32)
    assert layer.dense(torch.float32) is not layer.dense(torch.float32)
