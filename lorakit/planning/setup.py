"""What a run will work with, found once: data, task, base model, resolved settings, their reasons.

`plan`, `doctor`, the studio, the search and the run itself call `setup`, so all of them see the same settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lorakit.common.choice import Choice, Choices
from lorakit.common.errors import LorakitError
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.models import base_model
from lorakit.models.base_model import BaseModel
from lorakit.planning import choose, memory
from lorakit.run import Run
from lorakit.tasks.dataset import Prepared, prepare


@dataclass(frozen=True)
class Setup:
    """Everything that is decided before the weights of a model are loaded."""

    asked: Run  # the settings as the user gave them
    settings: Run  # the same with every `auto` replaced
    choices: Choices  # why
    facts: Facts
    prepared: Prepared
    base: BaseModel

    @property
    def task(self) -> str:
        """The task's name, found from the rows where the user left it open."""
        return self.settings.task

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return updates_of(self.asked, self.prepared)

    @cached_property
    def shape(self) -> memory.Shape:
        """Sizes of the model and of its adapters."""
        return memory.shape(self.settings)

    @cached_property
    def peak_memory(self) -> dict[str, int]:
        """Predicted bytes at the peak, by part and in `total`."""
        return memory.memory(self.settings, self.shape)

    def seconds(self) -> tuple[float, int]:
        """(predicted seconds of training, input tokens), from measured matrix products of this machine."""
        lengths = self.prepared.rows["train"].lengths
        rows = self.asked.epochs * len(lengths)
        if self.asked.max_updates is not None:
            rows = self.asked.max_updates * self.asked.global_batch_size
        tokens = int(rows * lengths.mean())
        return memory.seconds(self.settings, self.shape, tokens, memory.matmul_rate()), tokens

    def refuse(self) -> None:
        """Raises `LorakitError` when the run cannot fit into the memory that is there, with settings that would."""
        choose.refuse(self.settings, self.facts)


def setup(
    run: Run,
    facts: Facts | None = None,
    *,
    processes: int | None = None,
    alone: str = "",
    prepared: Prepared | None = None,
) -> Setup:
    """Prepares the data of a run and resolves its settings for a machine.

    Args:
        facts: the machine; None: the one this runs on.
        processes: how many processes have been started already; None: as many as a start would take.
        alone: why this is one process where several were wanted.
        prepared: the data of this run, where they were prepared before.

    Raises:
        LorakitError: the data, the model or a setting is at fault, or the machine cannot do what is asked for.
    """
    facts = facts or hardware.facts(run.output_dir)
    choose.first(run, facts)
    started = None if processes is None else choose.here(run, facts, processes, alone)
    prepared = prepared or prepare(run)
    settings, choices = choose.resolve(run.with_(task=prepared.meta["task"]), facts, started)
    if run.task == "auto":
        choices["task"] = Choice(settings.task, prepared.report.reason)
    if started and started.value > len(prepared.rows["train"]):
        raise LorakitError(
            f"{len(prepared.rows['train'])} training rows for {started.value} processes: some would "
            "have none",
            setting="processes",
            value=started.value,
            cure="lower processes",
        )
    settings, more = choose.cadence(settings, updates_of(run, prepared))
    return Setup(run, settings, choices | more, facts, prepared, base_model.of(run.model))


def updates_of(run: Run, prepared: Prepared) -> int:
    """Updates of a run over these rows: `max_updates`, else what its epochs take."""
    return run.max_updates or run.epochs * -(-len(prepared.rows["train"]) // run.global_batch_size)
