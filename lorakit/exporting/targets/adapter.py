"""The adapter alone, in PEFT's format; with `also`, those of other runs on the same base, to be switched.

model = PeftModel.from_pretrained(base, "exported/one", adapter_name="one")
model.load_adapter("exported/other", adapter_name="other"); model.set_adapter("other")
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.exporting import source as sources
from lorakit.exporting.proof import Proof, proof_of
from lorakit.exporting.reference import reference
from lorakit.exporting.source import Source
from lorakit.exporting.target import EXACT, ExportTarget
from lorakit.exporting.transformers_model import TransformersModel
from lorakit.machine.packages import tolerate_old_packages
from lorakit.models import identity
from lorakit.models.merge import untie


def room(weights: int, type_: str) -> tuple[float, float]:
    return 0.1 * weights, 4.5 * weights  # the proof holds the base in fp32


def others(source: Source) -> list[Source]:
    """The runs whose adapters go along. Raises `LorakitError` for one of another base or of the same name."""
    found = [sources.source(path) for path in source.options.get("also") or []]
    base = identity.base(source.run.model)
    for other in found:
        if differing := identity.base(other.run.model).differences(base):
            raise LorakitError(
                f"its adapter is of {other.run.model}, and {source.folder.path} tuned {source.run.model} "
                f"({' and '.join(differing)} differ); only adapters of one base go together",
                setting="--also",
                value=str(other.folder.path),
                where=other.folder.path,
                cure="leave it out of --also",
            )
    if found and source.classes:
        raise LorakitError(
            "a classifier's head is part of its adapter",
            setting="--also",
            where=source.folder.path,
            cure="export each alone",
        )
    names = [_name(each) for each in (source, *found)]
    if len(set(names)) < len(names):
        raise LorakitError(
            f"two runs have the name {max(names, key=names.count)}; adapters are switched by name",
            setting="--also",
            cure="rename one of the folders",
        )
    return found


def _name(source: Source) -> str:
    return source.folder.path.resolve().name


def write(source: Source, folder: Path, type_: str) -> list[str]:
    source.require_adapter("export it --to merged")
    together = others(source)
    for each in (source, *together):
        place = folder / _name(each) if together else folder
        shutil.copytree(each.saved, place, dirs_exist_ok=True)
    names = ", ".join(map(_name, (source, *together)))
    added = source.run.added_tokens or source.run.rope_scaling
    own = [
        "its base has added tokens or scaled RoPE; where it is not made again, export --to merged"
    ]
    return [f"adapters to switch by name: {names}"] * bool(together) + own * bool(added)


class Switched(TransformersModel):
    """Plain transformers and PEFT with one adapter or several."""

    def __init__(self, folder: Path, source: Source):
        from peft import PeftModel

        tolerate_old_packages()
        self.together, self.name = others(source), _name(source)
        first = folder / self.name if self.together else folder
        base = source.model("fp32")
        untie(base, first)
        model = PeftModel.from_pretrained(base, str(first), adapter_name=self.name)
        for other in self.together:
            model.load_adapter(str(folder / _name(other)), adapter_name=_name(other))
        super().__init__(model)

    def switch(self, name: str) -> None:
        self.model.set_adapter(name)


def load(folder: Path, proof: Proof) -> Switched:
    options = {k: v for k, v in proof.options.items() if k in ("also", "model")}
    return Switched(folder, sources.source(proof.folder, **options))


def facts(runtime: Switched, proof: Proof) -> dict[str, Any]:
    """The share of every other run's answers that its adapter gives when it is switched to, and back.

    Raises `LorakitError` when one gives another answer.
    """
    if not runtime.together:
        return {}
    shares = {}
    for other in runtime.together:
        asked = proof_of(other)
        said = reference(other, asked).said
        runtime.switch(_name(other))
        mine = [
            runtime.generate(prompt, asked.answer_tokens(prompt), asked.stop_ids)
            for prompt in asked.prompts[: len(said.answers)]
        ]
        same = sum(a == b for a, b in zip(mine, said.answers, strict=True))
        shares[_name(other)] = same / max(1, len(mine))
        if mine != said.answers:
            raise LorakitError(
                f"switched to, its adapter gives {same} of {len(mine)} of its answers",
                where=other.folder.path,
                cure="export each alone",
            )
    runtime.switch(runtime.name)
    return {"switched": shares}


TARGET = ExportTarget(
    types={"fp32": EXACT},
    write=write,
    load=load,
    facts=facts,
    room=room,
    weight_files=("*.safetensors",),
    use="PeftModel.from_pretrained({kind}.from_pretrained({base!r}), {name!r})",
    library="peft",
    classifiers=True,
    copies=True,
    proof_seconds=1.0,  # the files are the run's own, by SHA-256
)
