"""How much memory a computation takes, found by going through it with tensors that have no content.

torch's FakeTensorMode does the same and takes five times as long: it asks for the shapes of every operator anew.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class Empty(torch.Tensor):
    """A tensor of the CPU without content. `meta`: the same on the meta device; views share its storage."""

    meta: torch.Tensor

    @staticmethod
    def __new__(cls, meta: torch.Tensor) -> Empty:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device="cpu",
        )
        out.meta = meta
        return out

    def __repr__(self, **_: Any) -> str:
        return f"Empty({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:  # as a parameter is made
            return Empty(args[0].meta.detach())
        raise NotImplementedError(f"{function} outside of Live")


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside and still alive: `now`, and `most` at the worst moment.

    Nothing is computed, and no memory is taken: what is made inside is `Empty`. The tensors of `model` are not counted.
    Tensors with content, such as a list's numbers, are computed with as long as they meet none without.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.most = 0
        tensors = (*model.parameters(), *model.buffers())
        self.known = {t.meta.untyped_storage()._cdata for t in tensors if isinstance(t, Empty)}
        self._made: dict[Hashable, Any] = {}  # what an operator returns for inputs of these shapes

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors_of([*args, *kwargs.values()])
        if given and not any(isinstance(t, Empty) for t in given):
            return function(*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default and given[0].dtype == torch.bool:
            return False  # whether a mask is of ones alone, so that none is needed: it may not be
        effect = effect_of(function)
        if effect == "writes":
            return written(function, args, kwargs)
        if effect == "views":
            return self._see(on_meta(function, args, kwargs))
        key = (function, described(args), described(tuple(sorted(kwargs.items()))))
        if key not in self._made:
            self._made[key] = emptied(on_meta(function, args, kwargs))
        return self._see(emptied(self._made[key]))

    def _see(self, made: Any) -> Any:
        """Counts what an operator has made on the meta device -> the same as tensors of the CPU."""
        if isinstance(made, (list, tuple)):
            return type(made)([self._see(part) for part in made])
        if not isinstance(made, torch.Tensor):
            return made
        storage = made.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            size = storage.nbytes()
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)
        return Empty(made)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@contextlib.contextmanager
def kept_elsewhere() -> Iterator[None]:
    """What the backward pass needs is in the host's memory from its making in this block to its use."""

    def away(tensor: torch.Tensor) -> tuple[Any, ...]:
        return tensor.shape, tensor.stride(), tensor.dtype

    def back(kept: tuple[Any, ...]) -> torch.Tensor:
        shape, stride, dtype = kept
        return torch.empty_strided(shape, stride, dtype=dtype)

    with torch.autograd.graph.saved_tensors_hooks(away, back):
        yield


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The tensors among arguments, those in lists too."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_of(value)
    return found


@cache
def effect_of(function: Any) -> str:
    """Whether an operator `writes` into an argument, `views` one, or `makes` tensors of its own."""
    schema = function._schema
    aliases = [x.alias_info for x in (*schema.arguments, *schema.returns) if x.alias_info]
    if any(alias.is_write for alias in aliases):
        return "writes"
    # reshaping operators return their input or a copy of it
    return "views" if aliases or "reshape" in schema.name or "lift" in schema.name else "makes"


def written(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The arguments that an operator returns after writing into them."""
    schema = function._schema
    names = [argument.name for argument in schema.arguments]
    values = dict(zip(names, args, strict=False)) | kwargs
    found = [values[a.name] for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    if schema.name.rpartition("::")[2] in ("resize_", "set_", "as_strided_", "t_", "transpose_"):
        raise NotImplementedError(f"{schema.name} changes a shape")
    return found[0] if len(schema.returns) == 1 else tuple(found[: len(schema.returns)]) or None


def on_meta(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator returns on the meta device."""
    if function is torch.ops.aten._efficient_attention_backward.default:
        # torch 2.13's own shapes of it lack an argument: `meta__efficient_attention_backward`
        return [torch.empty_like(there(x)) for x in args[1:4]] + [torch.empty(0, device=META)]
    options = {name: there(value) for name, value in kwargs.items()}
    if makes_anew(function) and not tensors_of(args):
        options["device"] = META
    return function(*[there(value) for value in args], **options)


@cache
def makes_anew(function: Any) -> bool:
    return any(argument.name == "device" for argument in function._schema.arguments)


def there(value: Any) -> Any:
    """An argument on the meta device."""
    if isinstance(value, Empty):
        return value.meta
    if isinstance(value, torch.Tensor):
        return value.to(META)
    if isinstance(value, torch.device):
        return META
    return [there(part) for part in value] if isinstance(value, (list, tuple)) else value


def emptied(made: Any) -> Any:
    """Tensors of the same shapes on the meta device, in memory of their own."""
    if isinstance(made, torch.Tensor):
        return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=META)
    return type(made)([emptied(part) for part in made]) if isinstance(made, (list, tuple)) else made


def described(value: Any) -> Hashable:
    """What of an argument decides the shapes of a result."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([described(part) for part in value])
    return type(value), value


def empty(model: torch.nn.Module) -> None:
    """Takes the content from a model's tensors, which may be on the meta device; what is trained is in fp32."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Empty(torch.empty_like(buffer, device=META))
        for name, old in module._parameters.items():
            if old is not None:
                dtype = torch.float32 if old.requires_grad else old.dtype
                module._parameters[name] = torch.nn.Parameter(
                    Empty(torch.empty_like(old, dtype=dtype, device=META)), old.requires_grad
                )
