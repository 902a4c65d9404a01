"""Linear layers with an adapter, and gated MLPs of them, that save the least: no gradient of a frozen weight arises.

The plain form is PEFT's own modules: y = x Wᵀ + b + s · (x Aᵀ) Bᵀ (arXiv 2106.09685 §4.1), A (r, in) and B (out, r).
`install` gives PEFT's modules these forward passes and leaves alone, with the reason, what it cannot serve.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from lorakit.common.errors import LorakitError
from lorakit.engines.torch.kernels import device, gated
from lorakit.engines.torch.kernels.rounding import rounded

_as_peft: ContextVar[bool] = ContextVar("as_peft", default=False)
_standing: ContextVar[dict[int, torch.Tensor] | None] = ContextVar("standing", default=None)


@contextlib.contextmanager
def as_peft() -> Iterator[None]:
    """Inside, every module computes as PEFT wrote it, so that hooks see each of them."""
    token = _as_peft.set(True)
    try:
        yield
    finally:
        _as_peft.reset(token)


@contextlib.contextmanager
def standing() -> Iterator[None]:
    """Inside, a rounded weight is made once and kept, where one token after another would make it anew."""
    token = _standing.set({})
    try:
        yield
    finally:
        _standing.reset(token)


def kept_weights() -> dict[int, torch.Tensor] | None:
    """Dense weights by their layer's id, inside `standing`; None outside."""
    return _standing.get()


@dataclass
class Adapted:
    """A frozen linear layer and its adapter: what the functions below need to know."""

    module: Any  # PEFT's
    name: str  # of the adapter
    form: str = "none"  # what the sum of both is rounded to (`rounding.FORMS`)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in), B (out, r)"""
        return self.module.lora_A[self.name].weight, self.module.lora_B[self.name].weight

    @property
    def scale(self) -> float:
        return self.module.scaling[self.name]

    @property
    def dropout(self) -> Any:
        """The module, where there is one."""
        module = self.module.lora_dropout[self.name]
        return None if isinstance(module, torch.nn.Identity) else module

    @property
    def plain(self) -> bool:
        """Whether the adapter counts now, by itself, unmerged."""
        module = self.module
        changed = _as_peft.get() or module.disable_adapters or module.merged
        return not changed and module.active_adapters == [self.name]

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """(out, in), dequantized where it is stored in four bits."""
        layer = self.module.get_base_layer()
        # A weight gathered from several processes does not carry its state.
        state = getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)
        return (
            layer.weight.to(dtype)
            if state is None
            else dequantized(layer.weight.data.view(-1, 1), state).to(dtype)
        )

    def merged(self, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """W + s B A (out, in), summed in fp32 as an export does, and rounded."""
        kept = _standing.get()
        if kept is not None and id(self) in kept:
            return kept[id(self)]
        found = rounded(self.weight(torch.float32) + (b @ a).mul_(self.scale), self.form).to(dtype)
        if kept is not None:
            kept[id(self)] = found
        return found

    def read(self, x: torch.Tensor) -> Any:
        """What layers that multiply by themselves (`fp8`) need of x, for all that have the same input; else None."""
        layer = self.module.get_base_layer()
        return layer.read(x) if hasattr(layer, "read") else None

    def product(self, x: torch.Tensor, read: Any = None) -> torch.Tensor:
        """x Wᵀ + bias"""
        layer = self.module.get_base_layer()
        return (
            layer.product(x, read)
            if hasattr(layer, "read")
            else linear(x, self.weight(x.dtype), self.bias(x.dtype))
        )

    def product_back(self, dy: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """dy W, added to `into`"""
        layer = self.module.get_base_layer()
        if hasattr(layer, "read"):
            return layer.product_back(dy) if into is None else into.add_(layer.product_back(dy))
        return through(dy, self.weight(dy.dtype), into)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        found = self.module.get_base_layer().bias
        return None if found is None else found.to(dtype)

    def forward(
        self, x: torch.Tensor, low: torch.Tensor, a: torch.Tensor, b: torch.Tensor, read: Any = None
    ) -> torch.Tensor:
        """x (N, in) and what the adapter made of it, x Aᵀ (N, r) -> y (N, out)"""
        if self.form != "none":
            return linear(x, self.merged(a, b, x.dtype), self.bias(x.dtype))
        return self.product(x, read).addmm_(low, b.t().to(x.dtype), alpha=self.scale)

    def back_low(self, dy: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The gradient of x Aᵀ, (N, r)."""
        return (dy @ b.to(dy.dtype)).mul_(self.scale)

    def back_b(self, dy: torch.Tensor, low: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The gradient of B; its transpose is the faster product."""
        return (low.t() @ dy).t().to(dtype, memory_format=torch.contiguous_format).mul_(self.scale)


Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]  # A and B of each layer


def ahead(
    layers: Sequence[Adapted], pairs: Pairs, x: torch.Tensor, seen: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Layers with one input: x (N, in) -> each one's y (N, out), and x Aᵀ (N, Σ r) of all of them.

    `seen`: what the adapters see in place of x.
    """
    low, read = (x if seen is None else seen) @ joined(pairs, x.dtype).t(), layers[0].read(x)
    return [
        layer.forward(x, part, a, b, read)
        for layer, part, (a, b) in zip(layers, parts(low, pairs), pairs, strict=True)
    ], low


def joined(pairs: Pairs, dtype: torch.dtype) -> torch.Tensor:
    """All A, (Σ r, in)"""
    return (pairs[0][0] if len(pairs) == 1 else torch.cat([a for a, _ in pairs])).to(dtype)


def parts(low: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, ...]:
    """(N, Σ r) -> (N, r) of each layer"""
    return low.split([len(a) for a, _ in pairs], 1)


def back_low(layers: Sequence[Adapted], pairs: Pairs, dys: Sequence[torch.Tensor]) -> torch.Tensor:
    """The gradient of x Aᵀ, (N, Σ r)."""
    found = [layer.back_low(dy, b) for layer, dy, (_, b) in zip(layers, dys, pairs, strict=True)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def back_input(
    layers: Sequence[Adapted], pairs: Pairs, dys: Sequence[torch.Tensor], dlow: torch.Tensor
) -> torch.Tensor:
    """The gradient of x, summed where it arises. A rounded weight is made again: that takes less than to keep it."""
    dx, form = None, layers[0].form
    for layer, dy, (a, b) in zip(layers, dys, pairs, strict=True):
        dx = (
            layer.product_back(dy, dx)
            if form == "none"
            else through(dy, layer.merged(a, b, dy.dtype), dx)
        )
    return dx.addmm_(dlow, joined(pairs, dx.dtype)) if form == "none" else dx


def back_adapters(
    layers: Sequence[Adapted],
    pairs: Pairs,
    dys: Sequence[torch.Tensor],
    dlow: torch.Tensor,
    x: torch.Tensor,
    low: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients of A and B of each layer, in turn."""
    of_a = (dlow.t() @ x).to(pairs[0][0].dtype).split([len(a) for a, _ in pairs])
    return [
        gradient
        for layer, dy, part, da, (_, b) in zip(
            layers, dys, parts(low, pairs), of_a, pairs, strict=True
        )
        for gradient in (da, layer.back_b(dy, part, b.dtype))
    ]


def paired(tensors: Sequence[torch.Tensor]) -> Pairs:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def through(dy: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    """dy (N, out) times (out, in), added to `into`."""
    return dy @ weight if into is None else into.addmm_(dy, weight)


_room: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


def dequantized(weight: torch.Tensor, state: Any) -> torch.Tensor:
    """(out, in) of four bits a value; on a card in memory that the next call writes over."""
    from bitsandbytes.functional import dequantize_4bit

    if device.capability(weight.device) is None:  # only CUDA's writes into memory given to it
        return dequantize_4bit(weight, state)
    size, key = state.shape.numel(), (weight.device, state.dtype)
    if key not in _room or _room[key].numel() < size:
        _room[key] = torch.empty(size, dtype=state.dtype, device=weight.device)
    return dequantize_4bit(weight, state, out=_room[key][:size].view(state.shape))


def forget() -> None:
    """Gives that memory back."""
    _room.clear()


def flat(x: torch.Tensor) -> torch.Tensor:
    """(…, H) -> (N, H) in the precision that autocast asks for."""
    kind = x.device.type
    return x.reshape(-1, x.shape[-1]).to(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    )


class _Linear(torch.autograd.Function):
    """Layers with one input: (N, in) -> (N, out) of each."""

    @staticmethod
    def forward(ctx, x, layers, *tensors):
        with torch.autocast(x.device.type, enabled=False):
            out, low = ahead(layers, paired(tensors), x)
        ctx.save_for_backward(x, low, *tensors)
        ctx.layers = layers
        return tuple(out)

    @staticmethod
    def backward(ctx, *dys):
        x, low, *tensors = ctx.saved_tensors
        given = ctx.layers, paired(tensors), [dy.contiguous() for dy in dys]
        dlow = back_low(*given)
        dx = back_input(*given, dlow) if ctx.needs_input_grad[0] else None
        return dx, None, *back_adapters(*given, dlow, x, low)


class _Dropped(torch.autograd.Function):
    """The adapter sees its input through dropout."""

    @staticmethod
    def forward(ctx, x, dropped, layer, a, b):
        with torch.autocast(x.device.type, enabled=False):
            (out,), low = ahead([layer], [(a, b)], x, dropped)
        ctx.save_for_backward(dropped, low, a, b)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx, dy):
        dropped, low, a, b = ctx.saved_tensors
        given = [ctx.layer], [(a, b)], [dy]
        dlow = back_low(*given)
        return (
            ctx.layer.product_back(dy),
            dlow @ a.to(dy.dtype),
            None,
            *back_adapters(*given, dlow, dropped, low),
        )


class _Gated(torch.autograd.Function):
    """down(act(gate(x)) · up(x)): the product is not kept, but computed again in the backward pass."""

    @staticmethod
    def forward(ctx, x, layers, act, *tensors):
        pairs = paired(tensors)
        with torch.autocast(x.device.type, enabled=False):
            (e, g), low = ahead(layers[:2], pairs[:2], x)
            (y,), low_down = ahead(layers[2:], pairs[2:], gated.forward(e, g, act))
        ctx.save_for_backward(x, e, g, low, low_down, *tensors)
        ctx.layers, ctx.act = layers, act
        return y

    @staticmethod
    def backward(ctx, dy):
        x, e, g, low, low_down, *tensors = ctx.saved_tensors
        pairs = paired(tensors)
        down = ctx.layers[2:], pairs[2:], [dy.contiguous()]
        dlow = back_low(*down)
        dh = back_input(*down, dlow)
        h, de, dg = gated.backward(dh, e, g, ctx.act)
        of_down = back_adapters(*down, dlow, h, low_down)
        del h, dh
        both = ctx.layers[:2], pairs[:2], [de, dg]
        dlow = back_low(*both)
        return back_input(*both, dlow), None, None, *back_adapters(*both, dlow, x, low), *of_down


def install(model: Any, form: str = "none") -> Counter:
    """Gives every layer of a PEFT model that can be served its fast forward pass -> how many of each kind.

    Raises `LorakitError` where a layer is to be rounded and has to be left to PEFT.
    """
    layers = {id(m): adapted(m, form) for m in model.modules() if hasattr(m, "lora_A")}
    served = {k: layer for k, layer in layers.items() if layer is not None}
    lost = next(
        (n for n, m in model.named_modules() if form != "none" and layers.get(id(m), True) is None),
        None,
    )
    if lost:
        raise LorakitError(
            f"fake_quantization={form!r}: the adapter of '{lost}' is not of a plain linear layer, "
            "whose merged weight could be rounded; leave it out of target_modules"
        )
    found = Counter({"adapted layers": len(served), "left to PEFT": len(layers) - len(served)})
    for module in list(model.modules()):
        parts = {n: served.get(id(m)) for n, m in module.named_children()}
        if any(p is not None and p.dropout is not None for p in parts.values()):
            continue  # each adapter sees its input through a dropout of its own
        act = gated.name_of(getattr(module, "act_fn", None))
        if (
            act
            and list(parts) == ["gate_proj", "up_proj", "down_proj", "act_fn"]
            and all(list(parts.values())[:3])
        ):
            found["gated MLP"] += 1
            _mlp(module, [parts[n] for n in ("gate_proj", "up_proj", "down_proj")], act)
        if all(parts.get(n) for n in ("q_proj", "k_proj", "v_proj")) and not looks_elsewhere(
            module
        ):
            found["joint q, k, v"] += 1
            _joint(module, [parts[n] for n in ("q_proj", "k_proj", "v_proj")])
    for layer in served.values():
        if "forward" not in vars(layer.module):
            _single(layer)
    return found


def looks_elsewhere(attention: Any) -> bool:
    """Whether keys and values may be of other hidden states than the queries, as in an encoder-decoder."""
    return bool(
        {"key_value_states", "encoder_hidden_states"}
        & {*inspect.signature(attention.forward).parameters}
    )


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
    plain = isinstance(base, torch.nn.Linear) and not base.weight.requires_grad
    return Adapted(module, names[0], form) if plain else None


def _single(layer: Adapted) -> None:
    plain = layer.module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not layer.plain or args or kwargs:
            return plain(x, *args, **kwargs)
        rows, dropout = flat(x), layer.dropout
        out = (
            _Linear.apply(rows, [layer], *layer.tensors)[0]
            if dropout is None
            else _Dropped.apply(rows, dropout(rows), layer, *layer.tensors)
        )
        return out.view(*x.shape[:-1], -1)

    layer.module.forward = forward


def _joint(attention: Any, layers: list[Adapted]) -> None:
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

    attention.forward = attend

    def serve(place: int, plain: Any):
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if args or kwargs or not all(layer.plain for layer in layers):
                return plain(x, *args, **kwargs)
            if place == 0:
                out = _Linear.apply(
                    flat(x), layers, *(t for layer in layers for t in layer.tensors)
                )
                waiting.update({i: (x, y.view(*x.shape[:-1], -1)) for i, y in enumerate(out)})
            given, y = waiting.pop(place)
            if given is not x:
                raise RuntimeError("q, k and v were asked for different inputs")
            return y

        return forward

    for place, layer in enumerate(layers):
        layer.module.forward = serve(place, layer.module.forward)


def _mlp(module: Any, layers: list[Adapted], act: str) -> None:
    plain = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not all(layer.plain for layer in layers):
            return plain(x)
        out = _Gated.apply(flat(x), layers, act, *(t for layer in layers for t in layer.tensors))
        return out.view(*x.shape[:-1], -1)

    module.forward = forward
