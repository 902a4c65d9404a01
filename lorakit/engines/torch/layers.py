"""The blocks of a model that repeat: recomputed, or spread over the processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lorakit.common.errors import LorakitError
from lorakit.engines.torch.kernels import fp8


def layers(model: Any) -> list[torch.nn.Module]:
    """The blocks that repeat: the longest list of modules of one kind."""
    lists = [
        m
        for m in model.modules()
        if isinstance(m, torch.nn.ModuleList) and len({type(x) for x in m}) == 1
    ]
    if not lists:
        raise LorakitError(
            "this model has no list of equal layers: leave shard out, and gradient_checkpointing is "
            "True or False"
        )
    return list(max(lists, key=lambda found: len(list(found))))


def recompute(model: Any, count: bool | int) -> bool | int:
    """Activations are computed again in the backward pass (arXiv 1604.06174); a number: those of so many layers.

    The first ones: their turn comes when the activations of the others are gone.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if count is not True:
        for layer in layers(model)[count:]:
            layer.gradient_checkpointing = False
    return count


def split_layers(model: Any, where: torch.device) -> None:
    """Spreads every layer's weights over the processes (FSDP2, arXiv 2304.11277), each fetched when its turn comes.

    Adapters stay whole everywhere: they are small, and so is their all-reduce. Outside the layers nothing is split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(where.type, (torch.distributed.get_world_size(),))
    lora = {p for n, p in model.named_parameters() if p.requires_grad and "lora_" in n}
    for layer in layers(model):
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=True,
            ignored_params=lora & set(layer.parameters()),
        )
    model.to(where)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be spread over the processes. All must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def in_fp8(model: Any, where: torch.device, whole: Sequence[str]) -> tuple[str, str]:
    """Puts the frozen layers into FP8 -> how many, and who multiplies. Raises `LorakitError` on a card that cannot."""
    why = fp8.tried(where)
    if why and where.type == "cuda":
        raise LorakitError(
            f"quantization='fp8': torch {torch.__version__} cannot multiply it on "
            f"{torch.cuda.get_device_name(where)} ({why}); use nf4 or none"
        )
    return fp8.install(
        model, layers(model)[0], whole
    ), "by FP8 units" if where.type == "cuda" else (
        "there are no FP8 units here: the same numbers, slowly, good for a rehearsal"
    )
