"""What a target of an export offers: `TARGET` in each file of `exporting/targets/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lorakit.common import registry
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.exporting.proof import SECONDS, Proof
from lorakit.exporting.source import Source
from lorakit.models import base_model, gguf


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from the tuned model.

    Attributes:
        added_nats: growth of the loss on the run's own rows, nats a token.
        divergence: KL divergence of the export from the tuned model, nats a token, on the run's own rows and on
            texts unlike them; of a classifier the largest difference of a class's probability.
        agreement: least share of equal first choices, where the tuned model's is `measure.DECIDED` ahead.
    """

    added_nats: float
    divergence: float
    agreement: float

    def or_wider(self, other: Bounds) -> Bounds:
        """The wider of each."""
        return Bounds(
            max(self.added_nats, other.added_nats),
            max(self.divergence, other.divergence),
            min(self.agreement, other.agreement),
        )


EXACT = Bounds(1e-3, 1e-4, 0.999)
SIXTEEN_BITS = Bounds(0.02, 0.02, 0.97)
EIGHT_BITS = Bounds(0.1, 0.1, 0.9)
FOUR_BITS = Bounds(1.0, 0.7, 0.6)


class Runtime(Protocol):
    """What runs an exported model."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V) fp32 after each of the T tokens of a row."""
        ...

    def generate(
        self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[int]:
        """The greedy tokens after a prompt, without the one that stops it."""
        ...

    def probabilities(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """(C,) of a classifier for one row's inputs."""
        ...


def _no_facts(runtime: Any, proof: Proof) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class ExportTarget:
    """A format that a finished run can be written in.

    Attributes:
        types: precision -> its bounds; the first one is the default.
        write: (source, folder, type) -> notes; fills an existing folder. Raises `LorakitError` where it cannot.
        load: (folder, proof) -> the runtime that reads what was written, in a process that has loaded nothing else.
        room: (weights, type) -> (bytes on the disk, bytes of memory) while it is made.
        weight_files: patterns of the files that hold weights.
        use: a line for the model card that loads it; `{base}`, `{name}` and `{kind}` are filled in.
        library: the hub's name of the library that reads it; the target's own name where empty.
        packages: those that write it, and that run it in the proof.
        classifiers: whether it takes classifiers.
        trained_for: type -> the `fake_quantization` of runs that were trained with its rounded weights.
        facts: (runtime, proof) -> what else the proof found, for the record. Raises `LorakitError` for other tokens.
        copies: whether it copies the run's own files, so that the process that reads them is the reference as well.
        rounds_yarn: whether its runtime rounds the ends of YaRN's ramp (arXiv 2309.00071) where a model does not.
        proof_seconds: how long each model is asked at most, unless the user says so.
    """

    types: Mapping[str, Bounds]
    write: Callable[[Source, Path, str], list[str]]
    load: Callable[[Path, Proof], Runtime]
    room: Callable[[int, str], tuple[float, float]]
    weight_files: Sequence[str]
    use: str
    library: str = ""
    classifiers: bool = False
    packages: Sequence[str] = ()
    trained_for: Mapping[str, str] = field(default_factory=dict)
    facts: Callable[[Any, Proof], dict[str, Any]] = _no_facts
    copies: bool = False
    proof_seconds: float = SECONDS
    rounds_yarn: bool = False

    def type_named(self, name: str | None) -> str:
        """The type, by default the first. Raises `LorakitError` for one that there is not."""
        if name in (None, *self.types):
            return name or next(iter(self.types))
        raise LorakitError(
            f"there is no such type; there are {', '.join(self.types)}{did_you_mean(str(name), self.types)}",
            setting="--type",
            value=name,
            where=f"--type {name}",
        )

    def size(self, folder: Path) -> int:
        """Bytes of the weights that were written."""
        found = {path for pattern in self.weight_files for path in folder.rglob(pattern)}
        return sum(path.stat().st_size for path in found)


def named(name: str) -> ExportTarget:
    """The target of a file in `exporting/targets/`. Raises `LorakitError` listing those present."""
    return registry.load("export", name).TARGET


def bounds(target: ExportTarget, type_: str, source: Source) -> Bounds:
    """The bounds of a type, wider for models that a runtime computes a little differently.

    A run trained with a type's rounded weights differs by the rounding of activations alone.
    """
    wanted = target.types[type_]
    if target.trained_for.get(type_) == source.run.fake_quantization:
        wanted = EIGHT_BITS if "q" in type_ else SIXTEEN_BITS
    if type_ == "adapter" and gguf.source(base_model.path(source.run.model)):
        wanted = wanted.or_wider(EIGHT_BITS)  # llama.cpp rounds what it multiplies with blocks
    if not target.rounds_yarn:
        return wanted
    config = base_model.config(source.run.model).get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    return wanted.or_wider(EIGHT_BITS) if rope.get("truncate") is False else wanted
