"""The graph of a deep model from that of its first layers.

torch traces and rewrites every layer anew, two to three seconds of CPU each, though all are the same but for their
weights. So a model is traced with few layers, and the last of them is copied for each that follows. What is copied was
compared before: the layers by their modules, and in the graph each layer with the one that it repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Unlike(Exception):
    """The layers in a graph are not copies of each other."""


@dataclass(frozen=True)
class Stack:
    """The layers of a model.

    Attributes:
        name: of the list of layers in the model that is traced, e.g. `model.model.layers`.
        layers: all of them.
        period: each layer from `1 + period` on is like the one so many before it.
    """

    name: str
    layers: Any
    period: int

    @property
    def traced(self) -> int:
        """Layers that a graph needs to be continued: the first one may differ; then one of each kind, twice."""
        return 1 + 2 * self.period

    def tensors(self, layer: int) -> dict[str, Any]:
        """name in the graph -> weight or buffer of a layer."""
        own = self.layers[layer]
        found = {**dict(own.named_parameters()), **dict(own.named_buffers())}
        return {f"{self.name}.{layer}.{name}": tensor.detach() for name, tensor in found.items()}


def stack_of(model: Any, above: str = "model") -> Stack | None:
    """The layers of a causal model that repeat; None where they do not, or tracing all of them costs no more."""
    from torch.nn import ModuleList

    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        return None
    name, layers = found[0]
    kinds = [_kind(layer, number) for number, layer in enumerate(layers)]
    for period in range(1, count // 3 + 1):
        if all(kinds[i] == kinds[i - period] for i in range(1 + period, count)):
            return Stack(f"{above}.{name}", layers, period) if 1 + 2 * period < count else None
    return None


def _kind(layer: Any, number: int) -> tuple[Any, ...]:
    """All that tells a layer from another of the same model but its weights."""
    scalars = []
    for name, module in layer.named_modules():
        for key, value in sorted(vars(module).items()):
            place = any(word in key for word in ("idx", "index", "layer")) and value == number
            if isinstance(value, (bool, int, float, str, tuple, type(None))) and not place:
                scalars.append((name, key, value))
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors.items())
    return repr(layer), shapes, tuple(map(repr, scalars))


@contextmanager
def shortened(model: Any, stack: Stack | None) -> Iterator[None]:
    """Within it the model has only the layers that are traced; all of them without a `stack`."""
    from torch.nn import ModuleList

    if stack is None:
        yield
        return
    parent_name, _, own = stack.name.partition(".")[2].rpartition(".")
    parent = model.get_submodule(parent_name)
    setattr(parent, own, ModuleList(stack.layers[: stack.traced]))
    try:
        yield
    finally:
        setattr(parent, own, stack.layers)


def continued(ir_model: Any, stack: Stack) -> None:
    """Adds the layers to a graph that were not traced. Raises `Unlike` where the traced ones are no copies."""
    _Graph(ir_model.graph, stack).grow()


class _Graph:
    def __init__(self, graph: Any, stack: Stack):
        self.graph, self.stack = graph, stack
        self.blocks: list[list[Any]] = [[] for _ in range(stack.traced)]
        self.layer: dict[Any, int] = {}  # node -> its layer
        for node in graph:
            number = self._layer_of(node)
            if number is not None:
                self.layer[node] = number
                self.blocks[number].append(node)
        self.entries: dict[int, Any] = {}  # layer -> the value that it takes from the layer before

    def _layer_of(self, node: Any) -> int | None:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        start = scopes.find(f"'{self.stack.name}.")
        if start < 0:  # its part of the cache is passed on before the layers begin
            names = [v.name or "" for v in node.inputs if v] if node.op_type == "Identity" else []
            past = [name.split(".")[1] for name in names if name.startswith("past.")]
            return int(past[0]) if past else None
        number = scopes[start + len(self.stack.name) + 2 :].split(".")[0].split("'")[0]
        return int(number) if number.isdigit() else None

    def grow(self) -> None:
        period, traced = self.stack.period, self.stack.traced
        for layer in range(1 + period, traced):
            self._compare(layer - period, layer)
        leave = self._leaving(traced - 1)
        exits = {layer - 1: value for layer, value in self.entries.items()} | {traced - 1: leave}
        last = self.blocks[-1][-1]
        outside = [use for use in leave.uses() if use.node not in self.layer]
        for layer in range(traced, len(self.stack.layers)):
            copies, exits[layer] = self._copy(layer - period, layer, exits)
            self.blocks.append(copies)
            self.entries[layer] = exits[layer - 1]
            self.graph.insert_after(last, copies)
            last = copies[-1]
        for use in outside:
            use.node.replace_input_with(use.idx, exits[len(self.stack.layers) - 1])

    def _leaving(self, layer: int) -> Any:
        """The only value that what follows the layers takes from the last one."""
        values = {
            value
            for node in self.blocks[layer]
            if node.op_type != "Constant"
            for value in node.outputs
            if any(use.node not in self.layer for use in value.uses())
        }
        if len(values) != 1:
            raise Unlike(f"{len(values)} values leave layer {layer}")
        return values.pop()

    def _renamed(self, name: str | None, source: int, target: int) -> str:
        """The name that a weight, an input or an output of a layer has in another."""
        for start, end in ((f"{self.stack.name}.{source}.", f"{self.stack.name}.{target}."),
                           (f"past.{source}.", f"past.{target}."),
                           (f"present.{source}.", f"present.{target}.")):  # fmt: skip
            if name and name.startswith(start):
                return end + name[len(start) :]
        return ""

    def _compare(self, source: int, target: int) -> None:
        """Raises `Unlike` unless the second layer's nodes are those of the first with its own weights."""
        ours, theirs = self.blocks[source], self.blocks[target]
        if len(ours) != len(theirs):
            raise Unlike(f"layers {source} and {target} have {len(ours)} and {len(theirs)} nodes")
        same: dict[Any, Any] = {}
        for one, other in zip(ours, theirs, strict=True):
            alike = (one.op_type, one.domain, len(one.inputs), len(one.outputs))
            if alike != (other.op_type, other.domain, len(other.inputs), len(other.outputs)):
                raise Unlike(f"{one.name} is no {other.name}")
            if _attributes(one) != _attributes(other):
                raise Unlike(f"{one.name} and {other.name} have other attributes")
            for mine, its in zip(one.inputs, other.inputs, strict=True):
                self._compare_inputs(mine, its, source, target, same)
            same.update(zip(one.outputs, other.outputs, strict=True))
        if target not in self.entries:
            raise Unlike(f"layer {target} takes nothing of the one before")

    def _compare_inputs(self, one: Any, other: Any, source: int, target: int, same: dict) -> None:
        if one is other or (one in same and same[one] is other):
            return
        if one is None or other is None or one in same:
            raise Unlike(f"an input of layer {target} is not that of layer {source}")
        if self._renamed(one.name, source, target) == other.name and one.producer() is None:
            return
        if (value := _constant(one)) is not None and value == _constant(other):
            return
        before = tuple(self.layer.get(v.producer()) for v in (one, other))
        known = self.entries.get(target)
        if before != (source - 1, target - 1) or known not in (None, other):
            raise Unlike(f"{other.name} comes to layer {target} from elsewhere")
        self.entries[target], same[one] = other, other
        self.entries.setdefault(source, one)

    def _copy(self, source: int, target: int, exits: dict[int, Any]) -> tuple[list[Any], Any]:
        """(the nodes of a layer with the weights of another, the value that leaves it)."""
        import onnx_ir as ir

        made: dict[Any, Any] = {self.entries[source]: exits[target - 1]}
        weights, copies = self.stack.tensors(target), []
        for node in self.blocks[source]:
            inputs = [self._input(v, source, target, made, weights) for v in node.inputs]
            outputs = []
            for value in node.outputs:
                renamed = self._renamed(value.name, source, target)
                name = renamed or f"{value.name}_{target}"
                made[value] = ir.Value(name=name, shape=value.shape, type=value.type)
                outputs.append(made[value])
                if renamed:
                    self.graph.outputs.append(made[value])
            copies.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    inputs,
                    [*node.attributes.values()],
                    outputs=outputs,
                    version=node.version,
                    name=f"{node.name}_{target}",
                )
            )
        return copies, made[exits[source]]

    def _input(self, value: Any, source: int, target: int, made: dict, weights: dict) -> Any:
        import onnx_ir as ir

        if value is None or value in made:
            return made.get(value)
        name = self._renamed(value.name, source, target)
        if not name or value.producer() is not None:
            return value  # shared by all layers
        made[value] = ir.Value(name=name, shape=value.shape, type=value.type)
        if name in weights:
            made[value].const_value = type(value.const_value)(weights[name], name=name)
            self.graph.register_initializer(made[value])
        else:
            self.graph.inputs.append(made[value])
        return made[value]


def _attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node in a form that can be compared. Raises `Unlike` for graphs inside of it."""
    found = {}
    for name, attribute in node.attributes.items():
        kind = attribute.type.name
        if kind.startswith("GRAPH"):
            raise Unlike(f"{node.name} holds a graph")
        value = attribute.value
        found[name] = (
            kind,
            (value.dtype, value.shape, value.tobytes()) if kind == "TENSOR" else value,
        )
    return found


def _constant(value: Any) -> Any:
    """The content of a small constant; None for other values."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        return _attributes(producer)
    tensor = value.const_value
    return (
        (tensor.dtype, tensor.shape, tensor.tobytes())
        if tensor is not None and tensor.size < 100
        else None
    )
