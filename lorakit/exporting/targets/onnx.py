"""For onnxruntime: one graph with a key/value cache, in fp32 or with weights of 8 bits.

    input_ids, position_ids (B, S) · attention_mask (B, P + S) · past.{layer}.key, past.{layer}.value (B, H, P, D)
    -> logits (B, S, V) · present.{layer}.key, present.{layer}.value (B, H, P + S, D)

All of B, S and P are free; the first call gives a past of length 0. Of a classifier, without a past:

    input_ids, attention_mask (B, S), or pixel_values (B, 3, H, W) of one size -> logits (B, C)
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.exporting.onnx_layers import Stack, Unlike, continued, shortened, stack_of
from lorakit.exporting.proof import Proof, inputs_of
from lorakit.exporting.source import Source
from lorakit.exporting.target import EXACT, FOUR_BITS, ExportTarget

MODEL, CACHE = "model.onnx", "cache.json"
ONE_FILE = 1.5e9  # bytes from which the weights stand in a file of their own: a protobuf holds 2 GB


def room(weights: int, type_: str) -> tuple[float, float]:
    """The model, its graph and its file are in memory together."""
    return weights * (4 if type_ == "fp32" else 5.2), weights * 12.0


def write(source: Source, folder: Path, type_: str) -> list[str]:
    model = source.merged("fp32")
    exact = folder / ("fp32.onnx" if type_ == "int8" else MODEL)
    if source.classes:
        classifier_graph(model, inputs_of(source.own_rows[0], source.own_rows), exact)
    else:
        causal_graph(model, folder, exact)
    if type_ == "int8":
        quantize(exact, folder / MODEL)
        for file in folder.glob("fp32.onnx*"):
            file.unlink()
    (source.tokenizer or source.processor).save_pretrained(folder)
    return []


def causal_graph(model: Any, folder: Path, path: Path) -> None:
    """One step of a model that writes, with the sizes of its cache beside it."""
    stack = stack_of(model)
    try:
        _causal_graph(model, folder, path, stack)
    except Unlike:
        _causal_graph(model, folder, path, None)


def _causal_graph(model: Any, folder: Path, path: Path, stack: Stack | None) -> None:
    """With a `stack` its first layers are traced and the others copied of them."""
    import torch
    from transformers import DynamicCache

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {"layers": config.num_hidden_layers, "heads": heads, "width": width}
    (folder / CACHE).write_text(json.dumps(sizes), encoding="utf-8")
    layers = stack.traced if stack else config.num_hidden_layers

    class Step(torch.nn.Module):
        """One forward pass whose cache is plain tensors."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, position_ids, past):
            cache = DynamicCache()
            for layer in range(layers):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            out = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            return out.logits, *(t for x in out.past_key_values.layers for t in (x.keys, x.values))

    batch, some, before = 2, 3, 5  # 0 and 1 would be taken for constants
    names = [f"{{}}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    example = (
        torch.ones(batch, some, dtype=torch.long),
        torch.ones(batch, some + before, dtype=torch.long),
        torch.arange(before, before + some).repeat(batch, 1),
        [torch.zeros(batch, heads, before, width) for _ in names],
    )
    B, S, P, T = (torch.export.Dim(n) for n in ("batch", "sequence", "past", "total"))
    with shortened(model, stack):
        graph(
            model,
            Step(),
            path,
            example,
            ({0: B, 1: S}, {0: B, 1: T}, {0: B, 1: S}, [{0: B, 2: P} for _ in names]),
            ["input_ids", "attention_mask", "position_ids", *(n.format("past") for n in names)],
            ["logits", *(n.format("present") for n in names)],
            stack,
        )


def classifier_graph(model: Any, row: dict[str, np.ndarray], path: Path) -> None:
    """A classifier, from what `row` gives it to its logits."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *values):
            return self.model(**dict(zip(row, values, strict=True))).logits

    B, S = (torch.export.Dim(n) for n in ("batch", "sequence"))
    example = tuple(torch.from_numpy(np.repeat(value, 2, axis=0)) for value in row.values())
    graph(
        model,
        Logits(),
        path,
        example,
        (tuple({0: B, 1: S} if value.ndim == 2 else {0: B} for value in example),),
        [*row],
        ["logits"],
    )


def graph(
    model: Any,
    module: Any,
    path: Path,
    example: tuple,
    dims: tuple,
    inputs: list[str],
    outputs: list[str],
    stack: Stack | None = None,
) -> None:
    """Writes the graph of a module; with a `stack` its other layers are added to it.

    Raises `LorakitError` for a model that torch cannot trace, `Unlike` where the layers of the graph do not repeat.
    """
    import torch
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    if hasattr(model, "set_experts_implementation") and getattr(
        model.config, "num_local_experts", None
    ):
        model.set_experts_implementation(
            "batched_mm"
        )  # every expert by its own loop cannot be followed
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    for name in ("onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                verbose=False,
                optimize=False,  # its search for patterns takes longer than all the rest; the runtime has its own
                dynamic_shapes=dims,
                input_names=inputs,
                output_names=outputs,
            )
            if stack:
                continued(program.model, stack)
            fold_constants(program.model)
            remove_unused_nodes(program.model)
            weights = (v.const_value for v in program.model.graph.initializers.values())
            program.save(str(path), external_data=sum(w.nbytes for w in weights if w) > ONE_FILE)
    except (OSError, Unlike):
        raise
    except Exception as error:  # torch.export raises whatever the model makes it stumble over
        reason = str(error).strip().splitlines()[0][:200]
        raise LorakitError(
            f"{model.config.model_type}: torch cannot write its graph ({reason}); export it --to gguf "
            "or --to merged"
        ) from None


def quantize(source: Path, target: Path) -> None:
    """Weights of matrix products in 8 bits, a scale per column; activations are rounded as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # shapes of before: the quantizer turns some matrices round
    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(
        model,
        str(target),
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gather"],
        extra_options={"MatMulConstBOnly": True},
        use_external_data_format=source.with_name(f"{source.name}.data").exists(),
    )


def load(folder: Path, proof: Proof) -> OnnxRuntime:
    return OnnxRuntime(folder)


class OnnxRuntime:
    """onnxruntime on the CPU."""

    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
        self.session = onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"]
        )
        cache = folder / CACHE  # a classifier has none
        self.shape = json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else {}
        self.inputs = [i.name for i in self.session.get_inputs()]

    def probabilities(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        used = {name: value for name, value in inputs.items() if name in self.inputs}
        logits = self.session.run(None, used)[0][0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()

    def step(
        self, ids: Sequence[int], past: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """(logits (S, V), the cache with these tokens)."""
        before = past[0].shape[2]
        given = {
            "input_ids": np.array([[int(i) for i in ids]]),
            "attention_mask": np.ones((1, before + len(ids)), dtype=np.int64),
            "position_ids": np.arange(before, before + len(ids))[None],
        }
        names = [name for name in self.inputs if name.startswith("past.")]
        given = {k: v for k, v in given.items() if k in self.inputs}
        logits, *present = self.session.run(None, given | dict(zip(names, past, strict=True)))
        return logits[0], present

    def empty_cache(self) -> list[np.ndarray]:
        """(1, H, 0, D) for each key and value."""
        empty = np.zeros((1, self.shape["heads"], 0, self.shape["width"]), dtype=np.float32)
        return [empty] * (2 * self.shape["layers"])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self.step(ids, self.empty_cache())[0]

    def generate(
        self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[int]:
        out: list[int] = []
        ids, past = list(prompt), self.empty_cache()
        for _ in range(max_new_tokens):
            logits, past = self.step(ids, past)
            ids = [int(logits[-1].argmax())]
            if ids[0] in stop_ids:
                break
            out += ids
        return out


TARGET = ExportTarget(
    types={"fp32": EXACT, "int8": FOUR_BITS},  # int8 rounds the activations as well
    write=write,
    load=load,
    room=room,
    packages=("onnx", "onnxscript", "onnxruntime"),
    weight_files=("model.onnx*",),
    use='onnxruntime.InferenceSession("model.onnx")',
    classifiers=True,
)
