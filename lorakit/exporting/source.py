"""The finished run that an export is made of."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.models.merge import dtype_of, merge, refuse_nonfinite, unquantized_model
from lorakit.results.open_run import FinishedRun, open_run
from lorakit.run import Run
from lorakit.runs.folder import Folder
from lorakit.tasks.rows import Rows

ROWS = 32  # own rows that a proof asks at most
ENOUGH = 20  # test rows from which training rows are left alone


@dataclass(frozen=True)
class Source:
    """A finished run, as every target needs it.

    Attributes:
        opened: base and saved files verified.
        options: of the command: `type`, `also`, `model`, `proof_seconds`.
    """

    opened: FinishedRun
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Folder:
        return self.opened.folder

    @property
    def run(self) -> Run:
        return self.opened.run

    @property
    def saved(self) -> Path:
        return self.opened.saved

    @property
    def meta(self) -> dict[str, Any]:
        return self.opened.meta

    @property
    def tokenizer(self) -> Any:
        return self.opened.tokenizer

    @property
    def processor(self) -> Any:
        return self.opened.processor

    @property
    def classes(self) -> list[str]:
        """Names of a classifier's classes; empty for models that write."""
        return self.meta["classes"]

    def require_adapter(self, cure: str) -> None:
        """Raises `LorakitError` for a run that tuned the weights themselves."""
        if self.run.method != "lora":
            raise LorakitError(
                f"method={self.run.method} has no adapter",
                setting="method",
                value=self.run.method,
                where=self.folder.path,
                cure=cure,
            )

    @property
    def chats(self) -> bool:
        """Whether it was trained on turns."""
        return self.opened.task.GIVES == "messages" and not self.classes

    @property
    def rows(self) -> Rows:
        """Test rows, or the first training rows where those are few."""
        test = self.opened.rows("test")
        if test is None or len(test) < ENOUGH:
            test = self.opened.rows("train")
        if test is None:
            raise LorakitError("has no encoded rows", where=self.folder.path)
        return test.first(ROWS)

    @cached_property
    def own_rows(self) -> Rows:
        return self.rows

    def model(self, precision: str = "stored") -> Any:
        """transformers' model without the adapter; after `method: full` the tuned one."""
        pad_id = self.tokenizer.pad_token_id if self.classes and self.tokenizer else None
        weights = str(self.saved) if self.run.method == "full" else None
        return unquantized_model(
            self.run.model,
            task=self.meta["task"],
            precision=precision,
            weights=weights,
            classes=self.classes,
            pad_id=pad_id,
        )

    def merged(self, precision: str) -> Any:
        """transformers' model with the adapter in its weights, and the tokens at which an answer ends.

        Raises `LorakitError` when they do not belong together, or a weight leaves the range of the precision.
        """
        model = self.model("fp32" if precision == "fp32" else "stored")
        if self.run.method == "lora":
            model = merge(model, self.saved, precision, self.run.model)
        model = model.to(dtype_of(precision)).eval()
        if not self.classes:
            ends = model.generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
            model.generation_config.eos_token_id = sorted({*ends, *self.meta["stop_ids"]})
        refuse_nonfinite(model, precision, self.run.model)
        return model


def source(path: str | os.PathLike, **options: Any) -> Source:
    """A run that is done. Raises `LorakitError` for one that is not, and for another base or other files."""
    opened = open_run(path, model=options.get("model"), statuses=("done",))
    task = opened.task
    if tasks.objective_of(opened.meta["task"]).HEAD == "tokens" and task.MEDIUM:
        raise LorakitError(
            f"task={opened.meta['task']}: only models that read and write text alone, and classifiers, can be "
            "exported so far",
            setting="task",
            value=opened.meta["task"],
            where=opened.folder.path,
            cure=f"plain PEFT and transformers load {opened.saved}",
        )
    return Source(opened, options)
