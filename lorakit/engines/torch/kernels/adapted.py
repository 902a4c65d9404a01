"""A frozen linear layer with its adapter, and groups of them that have one input: their products forward and back.

y = x Wᵀ + bias + s (x Aᵀ) Bᵀ (arXiv 2106.09685 §4.1), A (r, in), B (out, r). No gradient of a frozen weight arises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.engines.torch.kernels import products
from lorakit.engines.torch.kernels.rounding import rounded

_as_peft: ContextVar[bool] = ContextVar("as_peft", default=False)
_merged_weights: ContextVar[dict[int, torch.Tensor] | None] = ContextVar(
    "merged_weights", default=None
)


@contextlib.contextmanager
def as_peft() -> Iterator[None]:
    """Every module computes as PEFT wrote it within this block, so that hooks see each of them."""
    token = _as_peft.set(True)
    try:
        yield
    finally:
        _as_peft.reset(token)


@contextlib.contextmanager
def standing() -> Iterator[None]:
    """Weights stand still within this block: a rounded one is made once, where each token would make it anew."""
    token = _merged_weights.set({})
    try:
        with products.generating():
            yield
    finally:
        _merged_weights.reset(token)


def kept_weights() -> dict[int, torch.Tensor] | None:
    """Dense weights by their layer's id within `standing`; None outside."""
    return _merged_weights.get()


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

    @property
    def base(self) -> Any:
        return self.module.get_base_layer()

    def merged(self, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """W + s B A (out, in), summed in fp32 as an export does, and rounded."""
        kept = _merged_weights.get()
        if kept is not None and id(self) in kept:
            return kept[id(self)]
        whole = products.dense(self.base).float() + (b @ a).mul_(self.scale)
        out = rounded(whole, self.form).to(dtype)
        if kept is not None:
            kept[id(self)] = out
        return out

    def read(self, x: torch.Tensor) -> Any:
        """What layers that multiply by themselves (`fp8`) need of x, for all that have the same input; else None."""
        return self.base.read(x) if hasattr(self.base, "read") else None

    def product(self, x: torch.Tensor, read: Any = None) -> torch.Tensor:
        """x Wᵀ + bias"""
        layer = self.base
        return layer.product(x, read) if hasattr(layer, "read") else products.linear(x, layer)

    def product_back(self, dy: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """dy W, added to `into`"""
        layer = self.base
        if hasattr(layer, "read"):
            return layer.product_back(dy) if into is None else into.add_(layer.product_back(dy))
        return products.back(dy, products.dense(layer), into)


class Group:
    """Adapted layers with one input x (N, in), as q, k and v have it.

    Their adapters are cast to the precision of the products once an update, A of all in one piece and B times s.
    """

    def __init__(self, layers: Sequence[Adapted], model: Copies):
        self.layers, self.form, self.model = list(layers), layers[0].form, model
        self.ranks = [len(layer.tensors[0]) for layer in layers]
        self._key: tuple[Any, ...] = ()
        self._copies: tuple[torch.Tensor, list[torch.Tensor]]
        model.groups.append(self)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """A and B of each layer in turn."""
        return [t for layer in self.layers for t in layer.tensors]

    @property
    def plain(self) -> bool:
        return all(layer.plain for layer in self.layers)

    def copies(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """All A (Σ r, in), and s · B (out, r) of each."""
        if self._key != self.key(dtype):
            self.model.refresh(dtype)
        return self._copies

    def key(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return (dtype, _updates, *((id(t), t._version, t.dtype) for t in self.tensors))

    def put(self, a: torch.Tensor, b: list[torch.Tensor], dtype: torch.dtype) -> None:
        self._copies, self._key = (a, b), self.key(dtype)

    def forward(
        self, x: torch.Tensor, seen: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """x (N, in) -> each layer's y (N, out), and x Aᵀ (N, Σ r) of all of them.

        `seen`: what the adapters see in place of x.
        """
        a, b = self.copies(x.dtype)
        low, read = (x if seen is None else seen) @ a.t(), self.layers[0].read(x)
        out: list[torch.Tensor] = []
        for layer, part, scaled in zip(self.layers, low.split(self.ranks, 1), b, strict=True):
            if self.form == "none":
                out.append(layer.product(x, read).addmm_(part, scaled.t()))
                continue
            bias = layer.base.bias
            merged = layer.merged(*layer.tensors, x.dtype)
            out.append(
                torch.nn.functional.linear(x, merged, None if bias is None else bias.to(x.dtype))
            )
        return out, low

    def back_low(self, dys: Sequence[torch.Tensor]) -> torch.Tensor:
        """The gradient of x Aᵀ, (N, Σ r)."""
        _, b = self.copies(dys[0].dtype)
        found = [dy @ scaled for dy, scaled in zip(dys, b, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def back_input(self, dys: Sequence[torch.Tensor], dlow: torch.Tensor) -> torch.Tensor:
        """The gradient of x, summed where it arises. A rounded weight is made again: less than to keep it."""
        dx: torch.Tensor | None = None
        for layer, dy in zip(self.layers, dys, strict=True):
            if self.form == "none":
                dx = layer.product_back(dy, dx)
            else:
                dx = products.back(dy, layer.merged(*layer.tensors, dy.dtype), dx)
        assert dx is not None
        return dx.addmm_(dlow, self.copies(dx.dtype)[0]) if self.form == "none" else dx

    def back_adapters(
        self,
        dys: Sequence[torch.Tensor],
        dlow: torch.Tensor,
        x: torch.Tensor,
        low: torch.Tensor,
    ) -> list[torch.Tensor]:
        """The gradients of A and B of each layer, in turn."""
        tensors = self.tensors
        of_a = (dlow.t() @ x).to(tensors[0].dtype).split(self.ranks)
        out: list[torch.Tensor] = []
        for layer, dy, part, da, b in zip(
            self.layers, dys, low.split(self.ranks, 1), of_a, tensors[1::2], strict=True
        ):
            # The transpose of B's gradient is the faster product.
            transposed = torch.addmm(part.new_empty(1, 1), part.t(), dy, beta=0, alpha=layer.scale)
            out += [da, transposed.t().to(b.dtype, memory_format=torch.contiguous_format)]
        return out


class Copies:
    """The copies of all groups of a model, made by few launches."""

    def __init__(self) -> None:
        self.groups: list[Group] = []

    @torch.no_grad()
    def refresh(self, dtype: torch.dtype) -> None:
        of_b = [(layer.tensors[1], layer.scale) for g in self.groups for layer in g.layers]
        scaled = list(torch._foreach_mul([b for b, _ in of_b], [s for _, s in of_b]))
        into: list[torch.Tensor] = []
        source: list[torch.Tensor] = []
        if scaled[0].dtype != dtype:
            into += [torch.empty_like(b, dtype=dtype) for b in scaled]
            source += scaled
            scaled = list(into)
        for group in self.groups:
            parts = group.tensors[::2]
            a = parts[0].detach()
            if len(parts) > 1 or a.dtype != dtype:
                a = a.new_empty(sum(group.ranks), a.shape[1], dtype=dtype)
                into += a.split(group.ranks)
                source += parts
            count = len(group.layers)
            group.put(a, scaled[:count], dtype)
            scaled = scaled[count:]
        if into:
            torch._foreach_copy_(into, source)


_updates = 0


def adapters_changed() -> None:
    """Makes every group cast its adapters anew: an optimizer may write past autograd's version counter."""
    global _updates
    _updates += 1


def flat(x: torch.Tensor) -> torch.Tensor:
    """(…, H) -> (N, H) in the precision that autocast asks for."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return x.reshape(-1, x.shape[-1]).to(dtype)


class FrozenLinear(torch.nn.Linear):
    """Stands for a frozen layer of (out, in) that is stored in another form: `product` and `product_back` know it."""

    def __init__(self, layer: torch.nn.Linear):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Frozen.apply(flat(x), self).view(*x.shape[:-1], -1)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx, dy):
        return ctx.layer.product_back(dy.contiguous()), None
