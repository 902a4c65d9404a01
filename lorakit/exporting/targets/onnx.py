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
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.exporting.round_trip import DEFAULT_BOUNDS, Source, given
from lorakit.exporting.targets.merged import merged

USE, LABELS = 'onnxruntime.InferenceSession("model.onnx")', True
PACKAGES = (
    "onnx",
    "onnxscript",
    "onnxruntime",
)  # what it writes with, and what it is run with to prove it
TYPES = ("fp32", "int8")
BOUNDS = {
    "fp32": DEFAULT_BOUNDS["fp32"],
    "int8": DEFAULT_BOUNDS["4"],
}  # int8 rounds the activations as well
MODEL, CACHE = "model.onnx", "cache.json"
ONE_FILE = 1.5e9  # bytes from which the weights stand in a file of their own: a protobuf holds 2 GB


def room(weights: int, kind: str) -> tuple[float, float]:
    return weights * (
        4 if kind == "fp32" else 5.2
    ), weights * 12.0  # the model, its graph, its file


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("model.onnx*"))


def export(source: Source, folder: Path, kind: str) -> list[str]:
    model = merged(source, "fp32")
    whole = folder / ("fp32.onnx" if kind == "int8" else MODEL)
    if source.classes:
        labels(model, given(source.rows[0], source.rows), whole)
    else:
        words(model, folder, whole)
    if kind == "int8":
        quantized(whole, folder / MODEL)
        for file in folder.glob("fp32.onnx*"):
            file.unlink()
    (source.tokenizer or source.processor).save_pretrained(folder)
    return []


def words(model: Any, folder: Path, path: Path) -> None:
    """One step of a model that writes, its sizes beside it."""
    import torch
    from transformers import DynamicCache

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    (folder / CACHE).write_text(
        json.dumps({"layers": layers, "heads": heads, "width": width}), encoding="utf-8"
    )

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
    graph(
        model,
        Step(),
        path,
        example,
        ({0: B, 1: S}, {0: B, 1: T}, {0: B, 1: S}, [{0: B, 2: P} for _ in names]),
        ["input_ids", "attention_mask", "position_ids", *(n.format("past") for n in names)],
        ["logits", *(n.format("present") for n in names)],
    )


def labels(model: Any, row: dict[str, np.ndarray], path: Path) -> None:
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
    way: Any,
    path: Path,
    example: tuple,
    dims: tuple,
    inputs: list[str],
    outputs: list[str],
) -> None:
    """Raises `LorakitError` for a model whose way torch cannot follow."""
    import torch

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
                way.eval(),
                example,
                dynamo=True,
                verbose=False,
                optimize=True,
                dynamic_shapes=dims,
                input_names=inputs,
                output_names=outputs,
            )
            program.save(
                str(path), external_data=sum(p.numel() for p in model.parameters()) * 4 > ONE_FILE
            )
    except OSError:
        raise
    except Exception as error:  # torch.export raises whatever the model makes it stumble over
        reason = str(error).strip().splitlines()[0][:200]
        raise LorakitError(
            f"{model.config.model_type}: torch cannot write its graph ({reason}); export it --to gguf "
            "or --to merged"
        ) from None


def quantized(source: Path, target: Path) -> None:
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


def load(folder: Path, source: Source) -> OnnxRuntime:
    return OnnxRuntime(folder)


class OnnxRuntime:
    """onnxruntime on the CPU."""

    def __init__(self, folder: Path):
        import onnxruntime

        chosen = onnxruntime.SessionOptions()
        chosen.log_severity_level, chosen.intra_op_num_threads = (
            3,
            int(os.environ.get("OMP_NUM_THREADS", 0)),
        )
        self.session = onnxruntime.InferenceSession(
            str(folder / MODEL), chosen, providers=["CPUExecutionProvider"]
        )
        cache = folder / CACHE  # a classifier has none
        self.shape = json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else {}

    def probabilities(self, given: dict[str, np.ndarray]) -> np.ndarray:
        used = {i.name for i in self.session.get_inputs()}
        logits = self.session.run(None, {k: v for k, v in given.items() if k in used})[0][0].astype(
            np.float64
        )
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()

    def step(self, ids: list[int], past: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(logits (S, V), the cache with these tokens)."""
        before = past[0].shape[2]
        given = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, before + len(ids)), dtype=np.int64),
            "position_ids": np.arange(before, before + len(ids))[None],
        }
        names = [i.name for i in self.session.get_inputs() if i.name.startswith("past.")]
        used = {i.name for i in self.session.get_inputs()}
        given = {k: v for k, v in given.items() if k in used} | dict(zip(names, past, strict=True))
        logits, *present = self.session.run(None, given)
        return logits[0], present

    def nothing(self) -> list[np.ndarray]:
        empty = np.zeros((1, self.shape["heads"], 0, self.shape["width"]), dtype=np.float32)
        return [empty] * (2 * self.shape["layers"])

    def generate(self, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
        out, ids, past = [], list(prompt), self.nothing()
        for _ in range(max_new_tokens):
            logits, past = self.step(ids, past)
            ids = [int(logits[-1].argmax())]
            if ids[0] in stop_ids:
                break
            out += ids
        return out

    def nats(self, ids: list[int], targets: list[bool]) -> float:
        logits = self.step(ids, self.nothing())[0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -float(sum(chosen[i - 1, ids[i]] for i, on in enumerate(targets) if on))
