"""Counts what a computation asks of a card: kernel launches, and reads that wait for it."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero"}


class Launches(TorchDispatchMode):
    """`launches`: operators that compute, views and allocations left out; `waits`: those that read their result."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in WAITS:
            self.waits[name] += 1
        elif not (
            function.is_view or "empty" in name or name in ("aten::detach", "aten::_unsafe_view")
        ):
            self.launches[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.launches.values())
