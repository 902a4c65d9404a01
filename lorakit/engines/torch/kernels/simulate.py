"""How much memory a computation takes, found by going through it with tensors that have no content."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside and still alive: `now`, and `most` at the worst moment.

    The tensors of `model` are not counted.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.most = 0
        self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@contextlib.contextmanager
def without_content() -> Iterator[None]:
    """Inside, tensors have a shape, a type and a device, and nothing else: no memory is taken, nothing is computed."""
    with FakeTensorMode():
        yield


def empty(model: torch.nn.Module) -> None:
    """Gives a model of the meta device tensors of the CPU, without content too; what is trained is in fp32."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for name, old in module._parameters.items():
            if old is not None:
                dtype = torch.float32 if old.requires_grad else old.dtype
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty(old.shape, dtype=dtype), old.requires_grad
                )
