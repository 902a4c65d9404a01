"""A finished run as the base of another: its adapter merged into its own base, once, in the cache.

`model: outputs/a` (or its `adapter` folder) trains on from what the run `a` learnt, with an adapter of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorakit.common import files, registry
from lorakit.common.errors import LorakitError
from lorakit.models import base_model, identity, served
from lorakit.run import Run
from lorakit.runs.folder import RunFolder
from lorakit.runs.status import Status

SAVED = ("adapter", "model")  # folders of a run that stand for the run


@dataclass(frozen=True)
class Parent:
    """A run that another is trained on from; base and saved files are those of its record."""

    folder: RunFolder
    run: Run  # `model` is where its base lies now
    task: str

    @property
    def saved(self) -> Path:
        return self.folder.saved(self.run.method)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the merged weights follow from, the same on every machine."""
        base = identity.base(self.run.model) if self.run.method == "lora" else None
        return {
            "base": [base.weights, base.config] if base else None,
            "saved": identity.files(self.saved, [p.name for p in sorted(self.saved.iterdir())]),
            "precision": self.run.precision,
        }

    def note(self) -> dict[str, Any]:
        """For the record of the run that is trained on from this one."""
        record = self.folder.record
        kept = {name: record.get(name) for name in ("updates", "model", "base_sha256", "files")}
        return {"run": str(self.folder.path.resolve()), "method": self.run.method, **kept}

    def sentence(self) -> str:
        """What is done with it."""
        done = f"{self.folder.record.get('updates', 0):,} updates"
        if self.run.method == "full":
            return f"the run {self.folder.path} ({done}); its tuned weights are trained on from"
        unquantized = "" if self.run.quantization == "none" else "unquantized "
        return (
            f"the run {self.folder.path} ({done}); its adapter is merged into the {unquantized}weights of "
            f"{self.folder.record.get('model')} in {self.run.precision}, and a new adapter is trained on them"
        )

    def merged(self) -> Path:
        """Folder of the merged model with the tokenizer and the template of the run."""
        if self.run.method == "full":
            return self.saved
        key = hashlib.sha256(json.dumps(["merged", self.origin]).encode()).hexdigest()[:32]
        return files.cached(key, self._write)

    def _write(self, part: Path) -> None:
        from lorakit.models.merge import (
            dtype_of,
            merge,
            quietly,
            refuse_nonfinite,
            unquantized_model,
        )

        precision = self.run.precision
        stored = "fp32" if precision == "fp32" else "stored"
        model = unquantized_model(self.run.model, task=self.task, precision=stored)
        model = merge(model, self.saved, precision, self.run.model).to(dtype_of(precision))
        refuse_nonfinite(model, precision, self.run.model)
        with quietly():
            model.save_pretrained(part)
        for file in self.saved.iterdir():
            if not file.name.startswith(("adapter_", "README")):
                shutil.copyfile(file, part / file.name)
        base_model.note_origin(part, self.origin)


def parent(model: str) -> Parent | None:
    """The run that a `model` setting names; None for other bases.

    Raises `LorakitError` for a run that is not done, whose files or base have changed, or whose task cannot be
    trained on from.
    """
    place = Path(model)
    top = place.parent if place.name in SAVED else place
    if not (top / "record.json").is_file() or (place / "config.json").is_file():
        return None
    folder = RunFolder.of(top)
    if folder.status != Status.DONE:
        raise LorakitError(
            f"model={model!r}: the run has status {folder.status}, and only a finished one can be trained on from",
            setting="model",
            value=model,
            where=folder.path,
            cure=f"end it first: lorakit train {folder.settings}",
        )
    return _opened(folder, model)


def _opened(folder: RunFolder, model: str) -> Parent:
    from lorakit.models.recorded import find_base, verify_files, verify_saved

    run, meta = Run.read(folder.settings), folder.meta()
    verify_saved(folder, folder.saved(run.method))
    verify_files(folder, ["rows/meta.json"])
    task = registry.load("tasks", meta["task"])
    if served.head_of(task) == "labels" or task.MEDIUM:
        raise LorakitError(
            f"model={model!r}: task={meta['task']}: only models that read and write text alone can be trained on from",
            setting="model",
            value=model,
            where=folder.path,
            cure="train on its base with all rows together",
        )
    if run.method == "lora":
        run = run.with_(model=find_base(folder, run, folder.record, None)[0])
    return Parent(folder, run, meta["task"])
