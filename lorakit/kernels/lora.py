"""Linear layers with an adapter, and gated MLPs of them, that save the least: no gradient of a frozen weight arises.

The plain form is PEFT's own modules: y = x Wᵀ + b + s · (x Aᵀ) Bᵀ (arXiv 2106.09685 §4.1), A (r, in) and B (out, r).
`install` gives PEFT's modules these forward passes and leaves alone, with the reason, what it cannot serve.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from lorakit.errors import LorakitError
from lorakit.kernels import gated
from lorakit.kernels.rounding import rounded

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
        return layer.weight.to(dtype) if state is None else dequantized(layer.weight.data.view(-1, 1), state).to(dtype)

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
        return layer.product(x, read) if hasattr(layer, "read") else linear(x, self.weight(x.dtype), self.bias(x.dtype))

    def product_back(self, dy: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """dy W, added to `into`"""
        layer = self.module.get_base_layer()
        if hasattr(layer, "read"):
            return layer.product_back(dy) if into is None else into.add_(layer.product_back(dy))
        return through(dy, self.weight(dy.dtype), into)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        found = self.module.get_base_layer().bias
        return None if found is None else found.to(dtype)

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, seen: torch.Tensor | None = None,
                read: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (N, in) -> y (N, out) and x Aᵀ (N, r); `seen`: what the adapter sees in place of x."""
        low = (x if seen is None else seen) @ a.t().to(x.dtype)
        if self.form != "none":
            return linear(x, self.merged(a, b, x.dtype), self.bias(x.dtype)), low
        return self.product(x, read).addmm_(low, b.t().to(x.dtype), alpha=self.scale), low

    def back_low(self, dy: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The gradient of x Aᵀ, (N, r)."""
        return (dy @ b.to(dy.dtype)).mul_(self.scale)

    def back_input(self, dy: torch.Tensor, dlow: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
                   into: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient of x, added to `into`. A rounded weight is made again: that takes less than to keep it."""
        if self.form != "none":
            return through(dy, self.merged(a, b, dy.dtype), into)
        return self.product_back(dy, into).addmm_(dlow, a.to(dy.dtype))

    def back_adapter(self, dy: torch.Tensor, dlow: torch.Tensor, x: torch.Tensor, low: torch.Tensor, dtype: torch.dtype
                     ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of A and B."""
        return (dlow.t() @ x).to(dtype), (dy.t() @ low).mul_(self.scale).to(dtype)

    def backward(self, dy: torch.Tensor, x: torch.Tensor, low: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
                 into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradients of x (added to `into`), A and B."""
        dlow = self.back_low(dy, b)
        return self.back_input(dy, dlow, a, b, into), *self.back_adapter(dy, dlow, x, low, a.dtype)


def through(dy: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    """dy (N, out) times (out, in), added to `into`."""
    return dy @ weight if into is None else into.addmm_(dy, weight)


_room: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


def dequantized(weight: torch.Tensor, state: Any) -> torch.Tensor:
    """(out, in) of four bits a value; on a card in memory that the next call writes over."""
    from bitsandbytes.functional import dequantize_4bit

    if weight.device.type != "cuda":  # bitsandbytes has no other that writes into memory given to it
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
    return x.reshape(-1, x.shape[-1]).to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, layer):
        with torch.autocast(x.device.type, enabled=False):
            y, low = layer.forward(x, a, b)
        ctx.save_for_backward(x, low, a, b)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx, dy):
        x, low, a, b = ctx.saved_tensors
        return (*ctx.layer.backward(dy.contiguous(), x, low, a, b), None)


class _Dropped(torch.autograd.Function):
    """The adapter sees its input through dropout."""

    @staticmethod
    def forward(ctx, x, dropped, a, b, layer):
        with torch.autocast(x.device.type, enabled=False):
            y, low = layer.forward(x, a, b, dropped)
        ctx.save_for_backward(dropped, low, a, b)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx, dy):
        dropped, low, a, b = ctx.saved_tensors
        dlow = ctx.layer.back_low(dy, b)
        return (ctx.layer.product_back(dy), dlow @ a.to(dy.dtype),
                *ctx.layer.back_adapter(dy, dlow, dropped, low, a.dtype), None)


class _Together(torch.autograd.Function):
    """Several layers with one input: its gradient is summed where it arises."""

    @staticmethod
    def forward(ctx, x, layers, *pairs):
        ctx.layers, out, lows = layers, [], []
        with torch.autocast(x.device.type, enabled=False):
            read = layers[0].read(x)
            for layer, a, b in zip(layers, pairs[::2], pairs[1::2], strict=True):
                y, low = layer.forward(x, a, b, read=read)
                out.append(y)
                lows.append(low)
        ctx.save_for_backward(x, *lows, *pairs)
        return tuple(out)

    @staticmethod
    def backward(ctx, *dys):
        x, *rest = ctx.saved_tensors
        lows, pairs = rest[:len(dys)], rest[len(dys):]
        dx, gradients = None, []
        for layer, dy, low, a, b in zip(ctx.layers, dys, lows, pairs[::2], pairs[1::2], strict=True):
            dx, da, db = layer.backward(dy.contiguous(), x, low, a, b, into=dx)
            gradients += [da, db]
        return dx, None, *gradients


class _Gated(torch.autograd.Function):
    """down(act(gate(x)) · up(x)): the product is not kept, but computed again in the backward pass."""

    @staticmethod
    def forward(ctx, x, layers, act, *pairs):
        gate, up, down = layers
        with torch.autocast(x.device.type, enabled=False):
            read = gate.read(x)
            e, low_e = gate.forward(x, *pairs[0:2], read=read)
            g, low_g = up.forward(x, *pairs[2:4], read=read)
            y, low = down.forward(gated.forward(e, g, act), *pairs[4:6])
        ctx.save_for_backward(x, e, g, low_e, low_g, low, *pairs)
        ctx.layers, ctx.act = layers, act
        return y

    @staticmethod
    def backward(ctx, dy):
        x, e, g, low_e, low_g, low, *pairs = ctx.saved_tensors
        gate, up, down = ctx.layers
        dy = dy.contiguous()
        a, b = pairs[4:6]
        dlow = down.back_low(dy, b)
        dh = down.back_input(dy, dlow, a, b)
        h, de, dg = gated.backward(dh, e, g, ctx.act)
        da_down, db_down = down.back_adapter(dy, dlow, h, low, a.dtype)
        del h, dh
        dx, da_gate, db_gate = gate.backward(de, x, low_e, *pairs[0:2])
        dx, da_up, db_up = up.backward(dg, x, low_g, *pairs[2:4], into=dx)
        return dx, None, None, da_gate, db_gate, da_up, db_up, da_down, db_down


def install(model: Any, form: str = "none") -> Counter:
    """Gives every layer of a PEFT model that can be served its fast forward pass -> how many of each kind.

    Raises `LorakitError` where a layer is to be rounded and has to be left to PEFT.
    """
    layers = {id(m): adapted(m, form) for m in model.modules() if hasattr(m, "lora_A")}
    served = {k: layer for k, layer in layers.items() if layer is not None}
    lost = next((n for n, m in model.named_modules() if form != "none" and layers.get(id(m), True) is None), None)
    if lost:
        raise LorakitError(f"fake_quantization={form!r}: the adapter of '{lost}' is not of a plain linear layer, "
                           "whose merged weight could be rounded; leave it out of target_modules")
    found = Counter({"adapted layers": len(served), "left to PEFT": len(layers) - len(served)})
    for module in list(model.modules()):
        parts = {n: served.get(id(m)) for n, m in module.named_children()}
        if any(p is not None and p.dropout is not None for p in parts.values()):
            continue  # each adapter sees its input through a dropout of its own
        act = gated.name_of(getattr(module, "act_fn", None))
        if act and list(parts) == ["gate_proj", "up_proj", "down_proj", "act_fn"] and all(list(parts.values())[:3]):
            found["gated MLP"] += 1
            _mlp(module, [parts[n] for n in ("gate_proj", "up_proj", "down_proj")], act)
        if all(parts.get(n) for n in ("q_proj", "k_proj", "v_proj")) and not looks_elsewhere(module):
            found["joint q, k, v"] += 1
            _joint([parts[n] for n in ("q_proj", "k_proj", "v_proj")])
    for layer in served.values():
        if "forward" not in vars(layer.module):
            _single(layer)
    return found


def looks_elsewhere(attention: Any) -> bool:
    """Whether keys and values may be of other hidden states than the queries, as in an encoder-decoder."""
    return bool({"key_value_states", "encoder_hidden_states"} & {*inspect.signature(attention.forward).parameters})


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
        out = (_Linear.apply(rows, *layer.tensors, layer) if dropout is None else
               _Dropped.apply(rows, dropout(rows), *layer.tensors, layer))
        return out.view(*x.shape[:-1], -1)

    layer.module.forward = forward


def _joint(layers: list[Adapted]) -> None:
    """The first computes for all; the others, called with the same tensor, take what is there."""
    waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def serve(place: int, plain: Any):
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if args or kwargs or not all(layer.plain for layer in layers):
                return plain(x, *args, **kwargs)
            if place == 0:
                out = _Together.apply(flat(x), layers, *(t for layer in layers for t in layer.tensors))
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
