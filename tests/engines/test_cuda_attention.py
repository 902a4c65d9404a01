"""Every attention path of a CUDA card, by reference kernels on a CPU: outputs and gradients beside the plain form."""

import pytest
import torch
from helpers.attention import agree, both, drawn
from helpers.cuda_reference import CARDS, calls, claimed

from lorakit.engines.torch.kernels import attention

HALF = (torch.float16, torch.bfloat16)
LENGTHS = {"one": [21], "around the window": [15, 16, 17, 1, 33], "short": [3, 8, 1]}


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("window", [None, 16, 1])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_gradients_of_the_chosen_path(card, dtype, lengths, window, sinks):
    if dtype == torch.bfloat16 and card < (8, 0):
        pytest.skip("planning refuses bf16 on this card")
    with claimed(card):
        q = torch.empty(1, 4, 2, 16, dtype=dtype)
        flash = dtype in HALF and card >= (8, 0)
        way = attention.form(q, q)
        assert way is (attention.flash if flash else attention.efficient)
        for heads in ((4, 2), (2, 2), (4, 1)):
            agree(both(way, dtype, lengths, heads, window=window, sinks=sinks), dtype)
        operator = "flash" if flash else "efficient"
        left = None if window is None else window - 1 if flash else window
        assert set(calls) == {(operator, dtype, left), (f"{operator} backward", dtype, left)}


@pytest.mark.parametrize("width", [64, 96, 128, 256])
def test_head_sizes(width):
    with claimed((9, 0)):
        agree(both(attention.flash, torch.bfloat16, [9, 4], width=width), torch.bfloat16)
    with claimed((7, 5)):
        agree(both(attention.efficient, torch.float16, [9, 4], width=width), torch.float16)


@pytest.mark.parametrize(
    ("card", "width", "of_value", "name"),
    [
        ((9, 0), 64, 64, "flash"),
        ((9, 0), 512, 512, "efficient"),  # FlashAttention ends at 256
        ((9, 0), 24, 16, "efficient"),  # and takes one size for queries and values
        ((7, 5), 64, 64, "efficient"),
        ((7, 5), 60, 60, "by_document"),  # the kernels read eight values at a time
    ],
)
def test_what_a_head_size_decides(card, width, of_value, name):
    with claimed(card):
        query, value = (torch.empty(1, 2, 3, n, dtype=torch.float16) for n in (width, of_value))
        way = attention.form(query, value)
        assert way is getattr(attention, name)
        agree(both(way, torch.float16, [5, 9], (2, 2), width, of_value=of_value), torch.float16)


@pytest.mark.parametrize(
    ("card", "width", "dropout", "name"),
    [
        ((8, 9), 192, 0.1, "flash"),
        ((8, 9), 208, 0.0, "efficient"),
        ((8, 9), 256, 0.0, "flash"),  # Gemma 3 on an L4
        ((8, 9), 256, 0.1, "efficient"),
        ((12, 0), 224, 0.0, "efficient"),
        ((8, 0), 256, 0.1, "flash"),
        ((9, 0), 208, 0.0, "flash"),
    ],
)
def test_wide_heads_whose_backward_pass_a_card_lacks(card, width, dropout, name):
    """The trial at loading goes forward alone, and would not see it."""

    class Layer(torch.nn.Module):
        is_causal = True

    q = drawn(1, 1, 6, width, seed=0).bfloat16().requires_grad_()
    documents = attention.Documents([4, 2], q.device)
    with claimed(card):
        out, _ = attention.packed_attention(
            Layer(), q, q, q, None, dropout=dropout, documents=documents
        )
        out.sum().backward()
        assert {called for called, *_ in calls} == {name, f"{name} backward"}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("way", "dtype"), [("flash", torch.bfloat16), ("efficient", torch.float16)]
)
def test_dropout_is_the_same_in_both_directions(way, dtype, window):
    """Values of one hot row each show the probabilities as they were dropped; their gradients drop the same."""
    with claimed((9, 0)):
        length, q = 8, drawn(1, 1, 8, 8, seed=0).to(dtype).requires_grad_()
        value = torch.eye(length, 8)[None, None].to(dtype).requires_grad_()
        documents = attention.Documents([length], q.device)
        torch.manual_seed(0)
        out = getattr(attention, way)(q, q, value, documents, None, 0.5, window)
        dropped = out[0, :, 0].float()  # (T, T)
        weight = drawn(length, 8, seed=1).float()
        (out[0, :, 0].float() * weight).sum().backward()
        expected = dropped.t() @ weight
        assert (dropped == 0).any() and (value.grad[0, 0].float() - expected).abs().max() < 2e-2


def test_queries_and_keys_wider_than_values():
    """Angles in fp32 widen queries and keys; autocast, or else the values, say what is computed in."""

    class Layer(torch.nn.Module):
        is_causal = True

    documents = attention.Documents([5, 4], torch.device("cpu"))
    q, v = drawn(1, 2, 9, 16, seed=0).float(), drawn(1, 2, 9, 16, seed=1).bfloat16()
    with claimed((9, 0)):
        out, _ = attention.packed_attention(Layer(), q, q, v, None, documents=documents)
        assert out.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.float16):
            out, _ = attention.packed_attention(Layer(), q, q, v, None, documents=documents)
            assert out.dtype == torch.float16
    out, _ = attention.packed_attention(Layer(), q, q, v, None, documents=documents)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("card", [None, *CARDS.values()], ids=["CPU", *CARDS])
@pytest.mark.parametrize("queries", [1, 7])
def test_grouped_heads_without_a_mask(monkeypatch, card, queries):
    """Below 8.0 no fused kernel takes them: torch would fall back to scores of (H, N, N)."""

    class Layer(torch.nn.Module):
        is_causal, num_key_value_groups = True, 2

    q, k, v = (drawn(1, h, n, 8, seed=h).float() for h, n in ((4, queries), (2, 7), (2, 7)))
    expected, _ = attention.sdpa_attention(Layer(), q, k, v, None, scaling=0.5)
    plain_sdpa, grouped = torch.nn.functional.scaled_dot_product_attention, []

    def sdpa(query, key, value, **options):
        grouped.append(query.shape[1] != key.shape[1])
        return plain_sdpa(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    with claimed(card):
        out, _ = attention.sdpa_attention(Layer(), q, k, v, None, scaling=0.5)
    assert torch.allclose(out, expected, atol=1e-6) and grouped == [card != (7, 5)]
