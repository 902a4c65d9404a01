"""`open_run`: the only way to open a finished run. What it returns is what was trained, or it raises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.models import base_model, locate, reading
from lorakit.models.recorded import find_base, verify_files, verify_saved
from lorakit.run import Run
from lorakit.runs.folder import RunFolder
from lorakit.tasks import rows
from lorakit.tasks.rows import Rows

TEMPLATE = "chat_template.jinja"  # beside an adapter
# Settings that bear on an answer; run.yaml may be edited, the record holds them as they were.
ANSWERING = (
    "method",
    "quantization",
    "fake_quantization",
    "precision",
    "added_tokens",
    "rope_scaling",
)
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class FinishedRun:
    """A run whose base and saved files are those that its record names.

    Attributes:
        run: its settings; `model` is where the base lies now.
        saved: folder of the adapter, or of the whole model after `method: full`.
        meta: what was noted when the rows were encoded: task, stop_ids, opening, classes.
        notes: what could not be checked, and what was found elsewhere than it was.
    """

    folder: RunFolder
    run: Run
    saved: Path
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> ModuleType:
        return registry.load("tasks", self.meta["task"])

    @property
    def record(self) -> dict[str, Any]:
        return self.folder.record

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer with the chat template that was saved with the run; None for a classifier of pictures."""
        if self.task.MEDIUM:
            return getattr(self.processor, "tokenizer", None)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.saved, trust_remote_code=False)
        except Exception as error:  # damaged files raise almost anything
            raise locate.unusable(str(self.saved), error) from None
        if self.task.GIVES == "messages" and not tokenizer.chat_template and self._chats:
            raise LorakitError(
                "its tokenizer has no chat template, so it could not be asked as it was trained",
                where=self.saved,
                cure="put chat_template.jinja of the run back, or train again",
            )
        return tokenizer

    @property
    def _chats(self) -> bool:
        return tasks.objective_of(self.meta["task"]).HEAD == "tokens"

    @cached_property
    def processor(self) -> Any:
        """The processor of pictures or sound that was saved with the run; None for a model of words."""
        if not self.task.MEDIUM:
            return None
        if not any((self.saved / name).is_file() for name in PROCESSORS):
            return base_model.reader(self.run.model)[1]  # an older run, or the base alone
        config = base_model.config(self.run.model)
        processor = reading.read_reader(self.run.model, str(self.saved), config)[1]
        saved = _saved_template(self.saved)
        if saved and hasattr(processor, "tokenizer"):
            processor.chat_template = processor.tokenizer.chat_template = saved
        return processor

    def rows(self, name: str) -> Rows | None:
        """The rows of one set, verified; None where the run has none. Raises `LorakitError` when they are damaged."""
        if not (self.folder.rows / name).is_dir():
            return None
        self.verify(f"rows/{name}")
        return rows.read(self.folder.rows, self.processor, (name,))[0].get(name)

    def verify(self, *names: str) -> None:
        """Raises `LorakitError` for a file of the run that is not what its record says."""
        verify_files(self.folder, names)

    def engine(self, *, adapted: bool = True) -> Any:
        """The tuned model, or with `adapted=False` its base alone, that reads as the run was trained."""
        engine = registry.load("engines", self.run.engine).load(
            self.run.with_(task=self.meta["task"]),
            adapter=self.saved if adapted else None,
            classes=self.meta["classes"],
        )
        if self.tokenizer is not None:
            engine.tokenizer = self.tokenizer
        if self.processor is not None:
            engine.processor = self.processor
        return engine


def open_run(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    adapted: bool = True,
    statuses: Sequence[str] = (),
) -> FinishedRun:
    """Opens a run that has saved something, and verifies that base and saved files are those it was trained with.

    Nothing else is looked at: damaged training rows do not matter to a question.

    Args:
        path: the run's folder, wherever it lies now.
        model: where the base lies now; otherwise it is looked for where it was.
        adapted: False where the base alone is wanted.
        statuses: those that the caller accepts; any when empty.

    Raises:
        LorakitError: no run is here, it has another status, the base is missing or another one, a saved file is
            missing or changed.
    """
    folder = RunFolder.of(path)
    record = folder.record
    if statuses and record["status"] not in statuses:
        raise LorakitError(
            f"has status {record['status']}; this needs {' or '.join(statuses)}",
            where=folder.path,
            cure="end the run with lorakit train",
        )
    run = Run.read(folder.settings)
    saved = folder.saved(run.method)
    if adapted and not saved.is_dir():
        raise LorakitError(
            f"has nothing saved yet (status {record['status']})",
            where=folder.path,
            cure="end the run with lorakit train",
        )
    edited = _edited(run, record)
    notes: list[str] = []
    if adapted:
        verify_saved(folder, saved)
    verify_files(folder, ["rows/meta.json"])
    if run.method == "full" and adapted:  # the whole model is saved: the base is not needed
        found = str(saved)
        run = run.with_(added_tokens=[], rope_scaling=None)  # it has them
    else:
        found, notes = find_base(folder, run, record, model)
    meta = folder.meta()
    run = run.with_(model=found, task=meta["task"])
    if run.chat_template:  # its file may be gone; the adapter has a copy
        run = run.with_(chat_template=str(saved / TEMPLATE))
    notes = [*edited, *notes]
    if adapted and record.get("files") is None:
        notes.append(
            "no hashes of its saved files were recorded: whether they changed is not known"
        )
    return FinishedRun(folder, run, saved, meta, tuple(notes))


def _edited(run: Run, record: dict[str, Any]) -> list[str]:
    """A note for each setting that answers otherwise than the run was trained."""
    trained = record.get("trained_with")
    settings = run.model_dump(include={*ANSWERING})
    return [
        f"run.yaml has {name}: {settings[name]}, the run was trained with {was}: other answers"
        for name, was in (trained.items() if isinstance(trained, dict) else ())
        if name in settings and settings[name] != was
    ]


def _saved_template(saved: Path) -> str | None:
    """The chat template that lies beside a saved adapter."""
    path = saved / TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None
