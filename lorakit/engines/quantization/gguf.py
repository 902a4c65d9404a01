"""The blocks of a GGUF file, kept as they are: one trains on the very weights that llama.cpp will serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.common.errors import LorakitError
from lorakit.models import gguf

if TYPE_CHECKING:
    import torch

    from lorakit.machine.hardware import Facts

LABEL = "QLoRA (GGUF)"
CONFLICTS = {
    "use_dora": ((True,), "DoRA needs nf4 or none"),
    "shard": ((True,), "weights in GGUF's blocks stay whole in every process; use nf4 or none"),
}


def bits_per_weight(width: int) -> float:
    return 6.5625  # of q6_k, the largest of the K-types; files differ


def unavailable(facts: Facts) -> str:
    return ""


def load_options(dtype: Any, skip: Sequence[str]) -> dict[str, Any]:
    return {}


def convert(model: Any, device: Any, skip: Sequence[str]) -> tuple[str, str]:
    """Replaces the dequantized weights of a loaded model by the file's blocks.

    Raises `LorakitError` for a model that is not out of a GGUF file, and for a layer whose blocks do not restore the
    weights that were loaded.
    """
    import torch

    from lorakit.engines.torch.kernels import blocks

    header = gguf.read(_file(model))
    names, found = _names(model, header), Counter[str]()
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is not torch.nn.Linear or layer is head:
            continue
        stored = header.tensors.get(f"{names.get_name(name)}.weight")
        if stored is None or stored.kind not in blocks.KINDS:
            found["left in 16 bits"] += 1
            continue
        content = torch.from_numpy(header.blocks(stored).copy()).to(device)
        packed = _in_order(content, stored.kind, layer.weight, model.config)
        if packed is None:
            raise LorakitError(
                f"{header.path}: the blocks of '{stored.name}' do not restore the weights of '{name}'",
                setting="quantization",
                value="gguf",
                cure="use quantization=none or nf4",
            )
        model.set_submodule(name, blocks.Linear(layer, packed, stored.kind))
        found[stored.kind] += 1
    if not set(found) - {"left in 16 bits"}:
        raise LorakitError(
            f"{header.path}: holds no linear layer in blocks of {', '.join(blocks.KINDS)}",
            setting="quantization",
            value="gguf",
            cure="use quantization=none or nf4",
        )
    kept = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
    return kept, f"the linear layers as they lie in {header.path.name}"


def _file(model: Any) -> Path:
    file = gguf.source(model.config._name_or_path)
    if file is None:
        raise LorakitError(
            f"{model.config._name_or_path}: is not out of a GGUF file, so there are no blocks to keep",
            setting="quantization",
            value="gguf",
            cure="name a .gguf file as the model, or use nf4 or none",
        )
    return file


def _names(model: Any, header: gguf.Header) -> Any:
    """llama.cpp's names of transformers' layers."""
    import gguf as package

    kinds = {name: kind for kind, name in package.MODEL_ARCH_NAMES.items()}
    return package.get_tensor_name_map(
        kinds[header.architecture], model.config.get_text_config().num_hidden_layers
    )


def _in_order(
    stored: torch.Tensor, kind: str, weight: torch.Tensor, config: Any
) -> torch.Tensor | None:
    """The rows (out, bytes) in transformers' order, found by their values; None where they are other weights.

    llama.cpp's Llama rotates neighbouring rows of a head, transformers' halves: its rows lie (heads, n, 2).
    """
    import torch

    from lorakit.engines.torch.kernels import blocks

    text, rows = config.get_text_config(), len(stored)
    for heads in (0, text.num_attention_heads, text.num_key_value_heads):
        if heads and rows % (2 * heads):
            continue
        given = stored.view(heads, -1, 2, stored.shape[1]).transpose(1, 2) if heads else stored
        given = given.reshape(rows, -1)
        # Loading has rounded the weights to 8 bits of mantissa at the least.
        restored = blocks.dequantized(given, kind)
        if torch.allclose(restored, weight.to(restored), rtol=2**-7, atol=1e-6):
            return given.contiguous()
    return None
