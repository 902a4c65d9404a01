"""Linear layers with an adapter, and gated MLPs of them, that save the least: no gradient of a frozen weight arises.

The plain form is PEFT's own modules. `install` gives them these forward passes and leaves alone, with the reason, what
it cannot serve.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from lorakit.common.errors import LorakitError
from lorakit.engines.torch.kernels import gated
from lorakit.engines.torch.kernels.adapted import Adapted, Copies, Group, flat
from lorakit.engines.torch.kernels.adapted import as_peft as as_peft
from lorakit.engines.torch.kernels.adapted import kept_weights as kept_weights
from lorakit.engines.torch.kernels.adapted import standing as standing

Gradients = tuple[torch.Tensor | None, ...]


class LoraLinear(torch.autograd.Function):
    """Layers with one input: (N, in) -> (N, out) of each."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, group: Group, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            out, low = group.forward(x)
        ctx.save_for_backward(x, low)
        ctx.group = group
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Gradients:
        (x, low), group = ctx.saved_tensors, ctx.group
        dys = [dy.contiguous() for dy in upstream]
        dlow = group.back_low(dys)
        dx = group.back_input(dys, dlow) if ctx.needs_input_grad[0] else None
        return dx, None, *group.back_adapters(dys, dlow, x, low)


class LoraDropout(torch.autograd.Function):
    """One layer whose adapter sees its input through dropout."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor, group: Group, *tensors: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            (out,), low = group.forward(x, dropped)
        ctx.save_for_backward(dropped, low)
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Gradients:
        (dropped, low), group = ctx.saved_tensors, ctx.group
        (dy,) = dys = [dy.contiguous() for dy in upstream]
        dlow = group.back_low(dys)
        return (
            group.layers[0].product_back(dy),
            dlow @ group.copies(dy.dtype)[0],
            None,
            *group.back_adapters(dys, dlow, dropped, low),
        )


class LoraGatedMLP(torch.autograd.Function):
    """down(act(gate(x)) · up(x)): the product is not kept, but computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, ahead: Group, down: Group, act: str, *tensors: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            (e, g), low = ahead.forward(x)
            (y,), low_down = down.forward(gated.forward(e, g, act))
        ctx.save_for_backward(x, e, g, low, low_down)
        ctx.ahead, ctx.down, ctx.act = ahead, down, act
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Gradients:
        (x, e, g, low, low_down), ahead, down = ctx.saved_tensors, ctx.ahead, ctx.down
        dys = [dy.contiguous() for dy in upstream]
        dlow = down.back_low(dys)
        dh = down.back_input(dys, dlow)
        h, de, dg = gated.backward(dh, e, g, ctx.act)
        of_down = down.back_adapters(dys, dlow, h, low_down)
        del h, dh
        dlow = ahead.back_low([de, dg])
        dx = ahead.back_input([de, dg], dlow)
        return dx, None, None, None, *ahead.back_adapters([de, dg], dlow, x, low), *of_down


def install(model: Any, form: str = "none") -> Counter[str]:
    """Gives every layer of a PEFT model that can be served its fast forward pass -> how many of each kind.

    Raises `LorakitError` where a layer is to be rounded and has to be left to PEFT.
    """
    layers = {id(m): adapted(m, form) for m in model.modules() if hasattr(m, "lora_A")}
    served = {k: layer for k, layer in layers.items() if layer is not None}
    if form != "none" and len(served) < len(layers):
        lost = next(n for n, m in model.named_modules() if id(m) in layers and id(m) not in served)
        raise LorakitError(
            f"fake_quantization={form!r}: the adapter of '{lost}' is not of a plain linear layer, "
            "whose merged weight could be rounded; leave it out of target_modules"
        )
    found = Counter({"adapted layers": len(served), "left to PEFT": len(layers) - len(served)})
    copies = Copies()
    for module in list(model.modules()):
        parts = {n: served.get(id(m)) for n, m in module.named_children()}
        if any(p is not None and p.dropout is not None for p in parts.values()):
            continue  # each adapter sees its input through a dropout of its own
        act = gated.name_of(getattr(module, "act_fn", None))
        names = ["gate_proj", "up_proj", "down_proj"]
        mlp = all_of(parts, names) if list(parts) == [*names, "act_fn"] else []
        if act and mlp and gated.is_gated(module, act):
            found["gated MLP"] += 1
            _mlp(module, Group(mlp[:2], copies), Group(mlp[2:], copies), act)
        attention = all_of(parts, ["q_proj", "k_proj", "v_proj"])
        if attention and not looks_elsewhere(module):
            found["joint q, k, v"] += 1
            _joint(module, Group(attention, copies))
    for layer in served.values():
        if "forward" not in vars(layer.module):
            _single(Group([layer], copies))
    return found


def all_of(parts: dict[str, Adapted | None], names: list[str]) -> list[Adapted]:
    """The layers of these names; none where one is missing."""
    layers = [layer for name in names if (layer := parts.get(name)) is not None]
    return layers if len(layers) == len(names) else []


def looks_elsewhere(attention: Any) -> bool:
    """Whether keys and values may be of other hidden states than the queries, as in an encoder-decoder."""
    names = set(inspect.signature(attention.forward).parameters)
    return bool(names & {"key_value_states", "encoder_hidden_states"})


def adapted(module: Any, form: str = "none") -> Adapted | None:
    """A module of PEFT that the functions above can stand for: a linear layer, dense or of four bits, plain LoRA."""
    from peft.tuners.lora import Linear, LoraLayer
    from peft.tuners.lora.bnb import Linear4bit

    if not isinstance(module, LoraLayer) or type(module) not in (Linear, Linear4bit):
        return None
    names = list(module.lora_A)
    base = module.get_base_layer()
    if len(names) != 1 or module.lora_variant or getattr(module, "fan_in_fan_out", False):
        return None
    if module.lora_A[names[0]].bias is not None or module.lora_B[names[0]].bias is not None:
        return None
    if not isinstance(base, torch.nn.Linear) or base.weight.requires_grad:
        return None
    own = type(base).forward is not torch.nn.Linear.forward  # as of routers and grouped layers
    known = type(module) is Linear4bit or hasattr(base, "read") or not own
    return Adapted(module, names[0], form) if known else None


def _single(group: Group) -> None:
    module, dropout = group.layers[0].module, group.layers[0].dropout
    plain = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not group.plain or args or kwargs:
            return plain(x, *args, **kwargs)
        rows = flat(x)
        if dropout is None:
            (out,) = LoraLinear.apply(rows, group, *group.tensors)
        else:
            out = LoraDropout.apply(rows, dropout(rows), group, *group.tensors)
        return out.view(*x.shape[:-1], -1)

    module.forward = forward


def _joint(attention: Any, group: Group) -> None:
    """The first computes for all; the others, called with the same tensor, take what is there.

    What one of them has not taken when the attention ends, by an error say, is dropped: its graph is a whole model's.
    """
    waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    whole = attention.forward

    @functools.wraps(whole)
    def attend(*args: Any, **kwargs: Any) -> Any:
        try:
            return whole(*args, **kwargs)
        finally:
            waiting.clear()

    def serve(place: int, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if args or kwargs or not group.plain:
                return plain(x, *args, **kwargs)
            if place == 0:
                out = LoraLinear.apply(flat(x), group, *group.tensors)
                waiting.update({i: (x, y.view(*x.shape[:-1], -1)) for i, y in enumerate(out)})
            given, y = waiting.pop(place)
            if given is not x:
                raise RuntimeError("q, k and v were asked for different inputs")
            return y

        return forward

    attention.forward = attend
    for place, layer in enumerate(group.layers):
        layer.module.forward = serve(place, layer.module.forward)


def _mlp(module: Any, ahead: Group, down: Group, act: str) -> None:
    plain = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not (ahead.plain and down.plain):
            return plain(x)
        out = LoraGatedMLP.apply(flat(x), ahead, down, act, *ahead.tensors, *down.tensors)
        return out.view(*x.shape[:-1], -1)

    module.forward = forward
