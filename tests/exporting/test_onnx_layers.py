"""Graphs of deep models: few layers are traced and the others copied, with the same outputs as torch."""

import json

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from lorakit.exporting import onnx_layers
from lorakit.exporting.onnx_layers import Unlike, shortened, stack_of

pytest.importorskip("onnxscript")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def llama(layers):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers)).eval()


def gemma(layers, full):
    """With sliding windows of 4 in all layers but every `full`-th."""
    kinds = [
        "full_attention" if i % full == full - 1 else "sliding_attention" for i in range(layers)
    ]
    config = Gemma3TextConfig(
        **SIZES, head_dim=8, num_hidden_layers=layers, layer_types=kinds, sliding_window=4
    )
    torch.manual_seed(0)
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize(
    "model, period, traced",
    [(llama(6), 1, 3), (gemma(7, 2), 2, 5), (gemma(6, 3), None, None), (llama(3), None, None)],
)
def test_where_layers_repeat(model, period, traced):
    stack = stack_of(model)
    assert (stack and stack.period, stack and stack.traced) == (period, traced)
    with shortened(model, stack):
        assert len(model.model.layers) == (traced or model.config.num_hidden_layers)
    assert len(model.model.layers) == model.config.num_hidden_layers


def test_layers_that_differ_are_all_traced():
    model = llama(6)
    model.model.layers[4].mlp.act_fn = torch.nn.ReLU()
    assert stack_of(model) is None
    model = llama(6)
    model.model.layers[4].self_attn.scaling = 1.0
    assert stack_of(model) is None


@pytest.mark.slow
@pytest.mark.parametrize("model", [llama(6), gemma(7, 2)], ids=["llama", "gemma"])
def test_a_continued_graph_is_the_model(model, tmp_path, monkeypatch):
    from lorakit.exporting.targets import onnx

    for number, weight in enumerate(model.parameters()):  # no two layers alike
        torch.manual_seed(number)
        weight.data += 0.3 * torch.randn_like(weight)
    whole = []
    monkeypatch.setattr(onnx, "_causal_graph", _counted(onnx._causal_graph, whole))
    onnx.causal_graph(model, tmp_path, tmp_path / "model.onnx")
    assert [stack is not None for stack in whole] == [True]
    ids = torch.arange(20).unsqueeze(0) * 7 % 64
    with torch.no_grad():
        expected = model(ids).logits[0].numpy()
    runtime = onnx.OnnxRuntime(tmp_path)
    assert json.loads((tmp_path / "cache.json").read_text())["layers"] == len(model.model.layers)
    np.testing.assert_allclose(runtime.logits(ids[0].tolist()), expected, atol=2e-5)
    first, past = runtime.step(ids[0, :11].tolist(), runtime.empty_cache())
    rest, _ = runtime.step(ids[0, 11:].tolist(), past)
    np.testing.assert_allclose(np.concatenate([first, rest]), expected, atol=2e-5)


@pytest.mark.slow
def test_a_graph_whose_layers_do_not_repeat_is_traced_whole(tmp_path, monkeypatch):
    from lorakit.exporting.targets import onnx

    def unlike(*_):
        raise Unlike("no copy")

    model, tried = llama(5), []
    monkeypatch.setattr(onnx, "continued", unlike)
    monkeypatch.setattr(onnx, "_causal_graph", _counted(onnx._causal_graph, tried))
    onnx.causal_graph(model, tmp_path, tmp_path / "model.onnx")
    assert [stack is not None for stack in tried] == [True, False]
    ids = torch.arange(9).unsqueeze(0)
    with torch.no_grad():
        expected = model(ids).logits[0].numpy()
    logits = onnx.OnnxRuntime(tmp_path).logits(ids[0].tolist())
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def _counted(function, calls):
    def counted(model, folder, path, stack):
        calls.append(stack)
        return function(model, folder, path, stack)

    return counted


def test_a_constant_that_differs_is_no_copy():
    ir = pytest.importorskip("onnx_ir")
    values = [ir.Value(name=n, const_value=ir.tensor([x])) for n, x in (("a", 1.0), ("b", 2.0))]
    assert onnx_layers._constant(values[0]) != onnx_layers._constant(values[1])
