"""The adapter alone, in PEFT's format; with `also`, those of other runs on the same base, to be switched.

model = PeftModel.from_pretrained(base, "exported/one", adapter_name="one")
model.load_adapter("exported/other", adapter_name="other"); model.set_adapter("other")
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.exporting.round_trip import DEFAULT_BOUNDS, Source, prompts, reference
from lorakit.exporting.round_trip import source as source_of
from lorakit.exporting.targets.merged import Plain, untuned
from lorakit.machine.packages import tolerate_old_packages
from lorakit.models import base_model

USE, LIBRARY, LABELS = (
    "PeftModel.from_pretrained({kind}.from_pretrained({base!r}), {name!r})",
    "peft",
    True,
)
TYPES = ("fp32",)
BOUNDS = {"fp32": DEFAULT_BOUNDS["fp32"]}


def room(weights: int, kind: str) -> tuple[float, float]:
    return 0.1 * weights, 4.5 * weights  # the round trip holds the base in fp32


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


def others(source: Source) -> list[Source]:
    """The runs whose adapters go along. Raises `LorakitError` for one of another base or of the same name."""
    found = [source_of(path) for path in source.options.get("also") or []]
    for other in found:
        if base_model.path(other.run.model) != base_model.path(source.run.model):
            raise LorakitError(
                f"{other.folder.path}: its adapter is of {other.run.model}, and {source.folder.path} "
                f"tuned {source.run.model}; only adapters of one base go together"
            )
    if found and source.classes:
        raise LorakitError(
            f"{source.folder.path}: a classifier's head is part of its adapter; export each alone"
        )
    each = [s.folder.path.name for s in (source, *found)]
    if len(set(each)) < len(each):
        raise LorakitError(
            f"two runs have the name {max(each, key=each.count)}; adapters are switched by name"
        )
    return found


def export(source: Source, folder: Path, kind: str) -> list[str]:
    if source.run.method != "lora":
        raise LorakitError(
            f"{source.folder.path}: method={source.run.method} has no adapter; export it --to merged"
        )
    together = others(source)
    for one in (source, *together):
        shutil.copytree(
            one.saved, folder / one.folder.path.name if together else folder, dirs_exist_ok=True
        )
    for other in together:
        reference(other)  # what it is compared with
    names = ", ".join(s.folder.path.name for s in (source, *together))
    return [f"adapters to switch by name: {names}"] if together else []


def load(folder: Path, source: Source) -> Switched:
    return Switched(folder, source)


class Switched(Plain):
    """Plain transformers and PEFT; `facts` switches to every other adapter and back."""

    def __init__(self, folder: Path, source: Source):
        from peft import PeftModel

        tolerate_old_packages()

        self.together, self.name = others(source), source.folder.path.name
        first = folder / self.name if self.together else folder
        model = PeftModel.from_pretrained(
            untuned(source, "fp32"), str(first), adapter_name=self.name
        )
        for other in self.together:
            model.load_adapter(
                str(folder / other.folder.path.name), adapter_name=other.folder.path.name
            )
        super().__init__(model)

    def facts(self) -> dict[str, Any]:
        """How many answers of every other run its adapter gives when it is switched to."""
        if not self.together:
            return {}
        switched = {}
        for other in self.together:
            self.model.set_adapter(other.folder.path.name)
            asked, said = prompts(other.rows), reference(other)[0]["exact"]["answers"]
            mine = [
                self.generate(p, other.run.max_new_tokens, other.meta["stop_ids"]) for p in asked
            ]
            switched[other.folder.path.name] = sum(
                a == b for a, b in zip(mine, said, strict=True)
            ) / len(said)
            if mine != said:
                raise LorakitError(
                    f"{other.folder.path}: switched to, its adapter gives {switched} of its answers"
                )
        self.model.set_adapter(self.name)
        return {"switched": switched}
