"""Counts what a computation asks of a card: kernel launches, reads that wait for it, and copies to it that do."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero", "aten::unique"}
CARD = torch.device("cuda")


class Launches(TorchDispatchMode):
    """`launches`: operators that compute, views and allocations left out; `waits`: those that read their result, as
    indices by truth values and repeats of unknown length do too."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, given = function._schema.name, kwargs or {}
        chosen = name in ("aten::index", "aten::index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        unknown = name == "aten::repeat_interleave" and given.get("output_size") is None
        if name in WAITS or chosen or unknown:
            self.waits[name] += 1
        elif not (
            function.is_view or "empty" in name or name in ("aten::detach", "aten::_unsafe_view")
        ):
            self.launches[name] += 1
        return function(*args, **given)

    @property
    def total(self):
        return sum(self.launches.values())


class Copies(TorchFunctionMode):
    """Keeps on the CPU what is sent to a card. `free`: copies from pinned memory; `waits`: all others."""

    def __init__(self):
        super().__init__()
        self.free, self.waits, self._pinned = 0, [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = dict(kwargs or {})
        if function is torch.Tensor.pin_memory:
            self._pinned.append(args[0])
            return args[0]
        if CARD.type in (getattr(x, "type", None) for x in (*args, *given.values())):
            if function is torch.Tensor.to and given.get("non_blocking"):
                assert any(args[0] is tensor for tensor in self._pinned), "not from pinned memory"
                self.free += 1
            elif function in (torch.Tensor.to, torch.tensor) or (
                function is torch.as_tensor and not torch.is_tensor(args[0])
            ):
                self.waits.append(f"{function.__name__} of {tuple(getattr(args[0], 'shape', ()))}")
            args = [torch.device("cpu") if getattr(x, "type", 0) == CARD.type else x for x in args]
            given = {
                n: torch.device("cpu") if getattr(x, "type", 0) == CARD.type else x
                for n, x in given.items()
            }
        return function(*args, **given)
