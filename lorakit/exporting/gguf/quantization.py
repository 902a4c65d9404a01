"""Which bits a tensor is stored in, and how it is packed."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.exporting.llama_cpp import quantize


def stored_as(name: str, tensor: np.ndarray, kind: str, layers: int, tied: bool) -> Any:
    """The type of one tensor. Vectors and what chooses experts stay in f32; rows that no block fills take a type that
    they do fill."""
    import gguf

    types = gguf.GGMLQuantizationType
    if tensor.ndim < 2 or kind == "f32" or name.endswith(".bias") or "ffn_gate_inp" in name:
        return types.F32
    wanted = types[mixed(name, layers, tied) if kind == "q4_k_m" else kind.upper()]
    if tensor.shape[-1] % 256:
        wanted = {types.Q4_K: types.Q5_0, types.Q5_K: types.Q5_1, types.Q6_K: types.Q8_0}.get(
            wanted, wanted
        )
    return types.F16 if kind.startswith("q") and tensor.shape[-1] % 32 else wanted


def mixed(name: str, layers: int, tied: bool) -> str:
    """llama.cpp's rule of q4_k_m (`llama-quant.cpp`, without its exceptions for 70B and for 8 experts): more bits for
    the head, and for values and `down` in half of the layers."""
    if name.startswith("output.") or (tied and name == "token_embd.weight"):
        return "Q6_K"
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    first = layers // 8
    more = layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2
    return (
        "Q6_K"
        if more and any(part in name for part in ("attn_v.", "attn_qkv.", "ffn_down"))
        else "Q4_K"
    )


def packed(tensor: np.ndarray, wanted: Any) -> np.ndarray:
    """The bytes of a tensor in a type: by the package `gguf`, K-types by llama.cpp's own quantizer.

    Raises `LorakitError` where the installed llama.cpp has none.
    """
    import gguf

    if not wanted.name.endswith("_K"):
        return gguf.quants.quantize(tensor, wanted)
    block, stored = gguf.GGML_QUANT_SIZES[wanted]
    try:
        return quantize(tensor, int(wanted), tensor.shape[-1] // block * stored)
    except LorakitError as error:
        error.cure = f"{error.cure}, or take --type q4_0"
        raise
