"""A model's weights with transformers' names and the values that llama.cpp computes with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lorakit.engines.mlx import bases
from lorakit.exporting.gguf.families import Family


def tensors(model: Any, config: Any, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """Names as transformers gives them, values as llama.cpp wants them."""
    weights = {n: t for n, t in model.state_dict().items() if not n.endswith("inv_freq")}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    weights = bases.experts_to_mlx(weights)  # stacks of (E, out, in), gate and up apart
    for name, tensor in weights.items():
        name = (
            name.removesuffix(".weight") + ".weight"
            if name.endswith((".sinks", ".weight"))
            else name
        )
        value = tensor.detach().float().contiguous().numpy()
        if family.norm_plus_one and name.endswith("norm.weight"):
            value = (value + 1) * (query_scale(config) if name.endswith("q_norm.weight") else 1)
        if family.interleaved and (heads := rotated(name, config)):
            value = interleave(value, heads)
        yield name, np.ascontiguousarray(value)


def query_scale(config: Any) -> float:
    """Gemma divides scores by the root of `query_pre_attn_scalar`, llama.cpp by that of a width (27B: of heads)."""
    width = (
        config.hidden_size / config.num_attention_heads
        if config.num_hidden_layers == 62
        else config.head_dim
    )
    return math.sqrt(width / config.query_pre_attn_scalar)


def rotated(name: str, config: Any) -> int:
    """How many heads a tensor holds that is rotated by position; 0 for others."""
    kind = name.split(".")[-2] if "." in name else ""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(kind, 0)


def interleave(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x1 … xn, y1 … yn) to neighbours (x1, y1, …, xn, yn)."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
