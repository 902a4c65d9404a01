"""Third parties' imports that most runs never use, postponed until something in them is used.

To read a configuration and a tokenizer, transformers imports torch, torchvision, accelerate and its own loader of
weights; for a model of text it imports torchvision's models, torch's compiler, SciPy's optimizers and distributed
checkpoints; PEFT imports bitsandbytes. That is four seconds of CPU in every process, for single names.

While a file in `POSTPONED` is executed, stand-ins take the place of the modules that it imports. A stand-in imports the
module as soon as something of it is used. Nothing stays in `sys.modules`: any other import works as ever.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from importlib import import_module, util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

Modules = Mapping[str, Sequence[str]]

MATCHING: Modules = {"scipy.optimize": ["linear_sum_assignment"]}
BITSANDBYTES: Modules = {"bitsandbytes": []}
SHARDS: Modules = {"torch.distributed.tensor": ["DTensor", "Shard"]}
DISTRIBUTED = "transformers.distributed"
# file -> modules that it imports -> names that it takes by `from … import`, to call them or to ask `isinstance`.
POSTPONED: dict[str, Modules] = {
    "torchvision": {f"torchvision.{name}": [] for name in ("datasets", "io", "models", "ops")},
    "transformers.utils.type_validators": {
        "torch": [],
        "transformers.activations": ["ACT2FN"],
        "transformers.image_utils": ["PILImageResampling"],
        "transformers.video_utils": ["VideoMetadataType"],
    },
    "transformers.modeling_rope_utils": {"torch": []},
    "transformers.masking_utils": {
        "torch._dynamo._trace_wrapped_higher_order_op": ["TransformGetItemToIndex"]
    },
    "transformers.core_model_loading": {
        f"{DISTRIBUTED}.sharding_utils": ["DtensorShardOperation", "_dtensor_from_local_like"]
    },
    "transformers.modeling_utils": {
        f"{DISTRIBUTED}.sharding_utils": ["_dtensor_from_local_like", "_tied_params_are_equal"],
        f"{DISTRIBUTED}.tensor_parallel": ["verify_tp_plan"],
    },
    "transformers.generation.utils": {f"{DISTRIBUTED}.tensor_parallel": ["get_kv_heads_per_rank"]},
    f"{DISTRIBUTED}.mixin": {
        f"{DISTRIBUTED}.expert_parallel": ["apply_expert_parallelism"],
        f"{DISTRIBUTED}.tensor_parallel": [
            "apply_tensor_parallelism",
            "gather_state_dict_for_save",
        ],
    },
    f"{DISTRIBUTED}.parallel_utils": SHARDS,
    f"{DISTRIBUTED}.sharding_utils": {
        **SHARDS,
        "torch.distributed.tensor._utils": ["compute_local_shape_and_global_offset"],
        "torch.distributed.tensor.placement_types": ["Shard"],
    },
    f"{DISTRIBUTED}.fsdp": {
        "torch.distributed._composable.fsdp": ["fully_shard"],
        "torch.distributed.fsdp": ["CPUOffloadPolicy", "MixedPrecisionPolicy"],
    },
    f"{DISTRIBUTED}.checkpoint": {
        **SHARDS,
        "torch.distributed.tensor.placement_types": ["_StridedShard"],
        "torch.distributed.checkpoint.hf_storage": [
            "HuggingFaceStorageReader",
            "HuggingFaceStorageWriter",
        ],
    },
    **{
        f"transformers.loss.loss_{name}": MATCHING
        for name in (
            "deformable_detr",
            "for_object_detection",
            "grounding_dino",
            "lw_detr",
            "rf_detr",
            "rt_detr",
        )
    },
    "peft.import_utils": {f"{DISTRIBUTED}.tensor_parallel": ["apply_tensor_parallelism"]},
    "peft.helpers": BITSANDBYTES,
    "peft.tuners.lora.bnb": BITSANDBYTES,
}
# Files that mark functions for torch's compiler, and import it to do so.
MARKING = (
    "transformers.generation.continuous_batching.cache",
    "transformers.integrations.deepgemm",
    "transformers.integrations.finegrained_fp8",
    "transformers.integrations.flex_attention",
    "transformers.integrations.sonicmoe",
    "transformers.modeling_utils",
)
COMPILER = "torch._dynamo"
TORCH_DISTRIBUTED = "torch.distributed"
DIRECT = (
    "__dynamo_disable"  # attribute of a function: what `torch._disable_dynamo` calls in its place
)


class Late:
    """What a module defines, imported when it is used. Nothing is an instance of a class that was never imported."""

    def __init__(self, module: str, name: str):
        self.__dict__.update(_module=module, _name=name)

    def _real(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._real()(*arguments, **options)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self._real(), attribute)

    def __instancecheck__(self, value: Any) -> bool:
        return self._module in sys.modules and isinstance(value, self._real())

    def __mro_entries__(self, bases: tuple) -> tuple:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:  # an annotation
        return self

    def __len__(self) -> int:
        return len(self._real())

    def __contains__(self, value: Any) -> bool:
        return value in self._real()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real())

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]


class StandIn(ModuleType):
    """Answers for a module: with `Late` for the names that are known, with the module's own for any other."""

    def __init__(self, name: str, known: Sequence[str]):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # `util.find_spec` answers with it
        # `inspect` asks every module for its `__file__`, `from … import` the module for its `__path__`
        self._own = ("__all__", "__version__") if known else ("__all__", "__version__", "__path__")
        for each in known:
            setattr(self, each, Late(name, each))

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute not in self._own:
            raise AttributeError(attribute)
        for name, module in list(sys.modules.items()):
            if isinstance(module, StandIn):  # what is imported in earnest finds no other stand-in
                del sys.modules[name]
        return getattr(import_module(self.__name__), attribute)


@contextmanager
def stand_ins(modules: Modules) -> Iterator[None]:
    """Within the block, modules that are installed and not imported yet have a stand-in in `sys.modules`."""
    before = {
        name: sys.modules.get(name) for name in modules
    }  # modules, or stand-ins of a block around
    for name, known in modules.items():
        module = before[name]
        if isinstance(module, StandIn) or (module is None and there(name, known)):
            sys.modules[name] = StandIn(name, known)
    try:
        yield
    finally:
        for name, module in before.items():
            if isinstance(sys.modules.get(name), StandIn):
                del sys.modules[name]
                if module is not None:
                    sys.modules[name] = module


def there(module: str, names: Sequence[str]) -> bool:
    """Whether a module is installed, and in transformers' files whether it defines these; nothing is imported."""
    package, _, path = module.partition(".")
    if package not in sys.modules and util.find_spec(package) is None:
        return False
    if package != "transformers":
        return True
    file = Path(sys.modules[package].__path__[0], f"{path.replace('.', '/')}.py")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return all(re.search(rf"^\s*(def |class )?{name}\b", text, re.MULTILINE) for name in names)


class Marks:
    """Stands for `torch._dynamo` where functions are marked. The marks are made when the compiler is imported."""

    made: list[tuple[str, Callable]] = []  # (mark, function)
    direct: list[Callable] = []  # see `called_directly`

    def assume_constant_result(self, function: Callable) -> Callable:
        return self._mark("assume_constant_result", function)

    def allow_in_graph(self, function: Callable) -> Callable:
        return self._mark("allow_in_graph", function)

    def _mark(self, mark: str, function: Callable) -> Callable:
        if COMPILER in sys.modules:
            return getattr(sys.modules[COMPILER], mark)(function)
        self.made.append((mark, function))
        return function

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(COMPILER), name)

    @classmethod
    def make(cls, compiler: ModuleType) -> None:
        """Makes the marks, now that the compiler is here."""
        for function in cls.direct:
            delattr(function, DIRECT)
        for mark, function in cls.made:
            getattr(compiler, mark)(function)
        cls.direct.clear()
        cls.made.clear()


@contextmanager
def marked_late() -> Iterator[None]:
    """Within the block functions can be marked for torch's compiler without importing it."""
    import torch

    if COMPILER in sys.modules:
        yield
        return

    def disable(function: Callable | None = None, recursive: bool = True, **_: Any) -> Any:
        return torch._disable_dynamo(function, recursive)  # torch's own: it imports at a call

    marks, names = Marks(), vars(torch.compiler)
    original = {name: names[name] for name in ("disable", "allow_in_graph")}
    names |= {"disable": disable, "allow_in_graph": marks.allow_in_graph}
    vars(torch).setdefault("_dynamo", marks)
    try:
        yield
    finally:
        names |= original
        if vars(torch).get("_dynamo") is marks:
            del torch._dynamo


def answer_for_parts(distributed: ModuleType) -> None:
    """Gives `torch.distributed` the parts that others take from it without importing them, as PEFT its `tensor`."""

    def part(name: str) -> Any:
        if name == "tensor":
            return StandIn(f"{TORCH_DISTRIBUTED}.tensor", ["DTensor"])
        if name in ("checkpoint", "fsdp"):
            return import_module(f"{TORCH_DISTRIBUTED}.{name}")
        raise AttributeError(f"module '{TORCH_DISTRIBUTED}' has no attribute '{name}'")

    vars(distributed).setdefault("__getattr__", part)


class Loader(SourceFileLoader):
    """Executes a file that `Finder` has found."""

    def exec_module(self, module: ModuleType) -> None:
        for finder in list(sys.meta_path):  # `Finder` was faster; some prepare what is imported
            if finder is not PathFinder and not isinstance(finder, Finder):
                finder.find_spec(self.name, None)
        with ExitStack() as around:
            around.enter_context(stand_ins(POSTPONED.get(self.name, {})))
            if self.name in MARKING:
                around.enter_context(marked_late())
            super().exec_module(module)
        for name, replace in REPLACED.get(self.name, {}).items():
            if name in vars(module):
                setattr(module, name, replace(vars(module)[name]))
        if self.name == COMPILER:
            Marks.make(module)
        if self.name == TORCH_DISTRIBUTED:
            answer_for_parts(module)


@cache
def has_linear4bit() -> bool:
    """PEFT's `is_bnb_4bit_available` by the version on the disk: `bitsandbytes.nn.Linear4bit` came with 0.39."""
    from importlib import metadata

    from packaging.version import Version

    try:
        return Version(metadata.version("bitsandbytes")) >= Version("0.39")
    except metadata.PackageNotFoundError:
        return False


def is_dtensor(value: Any) -> bool:
    """transformers' function of this name; nothing is a DTensor before its module is imported."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def called_directly(disable_dynamo: Callable) -> Callable:
    """torch's decorator of functions that its compiler is to leave alone, without importing the compiler at a call.

    As long as it is not imported nothing is compiled, and the function is called as it is.
    """

    def disable(function: Callable | None = None, recursive: bool = True) -> Any:
        if function is None:
            return partial(disable, recursive=recursive)
        wrapped = disable_dynamo(function, recursive)
        if COMPILER not in sys.modules:
            with suppress(AttributeError):  # a built-in function holds none
                setattr(function, DIRECT, function)
                Marks.direct.append(function)
        return wrapped

    return disable


def fsdp_managed(is_managed: Callable) -> Callable:
    """transformers' `is_fsdp_managed_module`; no module is FSDP's before FSDP is imported."""

    def asked(module: Any) -> bool:
        if "torch.distributed.fsdp" in sys.modules:
            return bool(is_managed(module))
        return bool(getattr(module, "_is_fsdp_managed_module", False))

    return asked


# file -> what takes the place of its own, made of that: the same answers without an import.
REPLACED: dict[str, dict[str, Callable[[Any], Any]]] = {
    "torch._compile": {"_disable_dynamo": called_directly},
    # of a configuration's dtype it makes a `torch.dtype`; text serves as well
    "transformers.configuration_utils": {
        "is_torch_available": lambda asked: lambda: "torch" in sys.modules and asked()
    },
    "peft.import_utils": {"is_bnb_4bit_available": lambda _: has_linear4bit},
    f"{DISTRIBUTED}.fsdp": {"is_fsdp_managed_module": fsdp_managed},
    f"{DISTRIBUTED}.utils": {"is_dtensor": lambda _: is_dtensor},
    # the registry is filled by the files that `mixin` imports late
    f"{DISTRIBUTED}.mixin": {
        "ALL_PARALLEL_STYLES": lambda _: Late(
            "transformers.integrations.tensor_parallel", "ALL_PARALLEL_STYLES"
        )
    },
}
FILES = {*POSTPONED, *MARKING, *REPLACED, COMPILER, TORCH_DISTRIBUTED}


class Finder(MetaPathFinder):
    """Finds what Python's own finder finds, and lets `Loader` execute it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in FILES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on in this process; calling it again does nothing."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
        if TORCH_DISTRIBUTED in sys.modules:
            answer_for_parts(sys.modules[TORCH_DISTRIBUTED])
