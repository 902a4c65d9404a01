"""What a run will work with, found once: data, task, base model, resolved settings, their reasons.

`plan`, `doctor`, the studio, the search and the run itself call `setup`, so all of them see the same settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorakit.common import registry
from lorakit.common.choice import Choice, Choices
from lorakit.common.errors import LorakitError
from lorakit.data.sources import of_run
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.models import base_model, safety
from lorakit.models.base_model import BaseModel
from lorakit.models.derived import derived
from lorakit.models.parent import parent
from lorakit.planning import choose, host_memory, ladder, memory
from lorakit.planning.effective import refuse_ineffective
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
        """Predicted bytes at the peak, by part and in `total`, of the rows that are there."""
        return memory.memory(shortened(self.settings, self.prepared), self.shape, self.facts)

    @cached_property
    def host_memory(self) -> dict[str, int]:
        """Predicted bytes of the host's memory, of all processes."""
        planned = shortened(self.settings, self.prepared)
        return host_memory.host(planned, self.facts, self.shape)

    def seconds(self) -> tuple[float, int]:
        """(predicted seconds of training, input tokens), from measured matrix products of this machine."""
        lengths = self.prepared.rows["train"].lengths
        rows = self.asked.epochs * len(lengths)
        if self.asked.max_updates is not None:
            rows = self.asked.max_updates * self.asked.global_batch_size
        tokens = int(rows * lengths.mean())
        return self._seconds(tokens), tokens

    def _seconds(self, tokens: int) -> float:
        rate = memory.matmul_rate(self.settings.precision)
        return memory.seconds(self.settings, self.shape, tokens, rate)

    def refuse(self) -> None:
        """Raises `LorakitError` when the run cannot fit into the memory that is there, with settings that would."""
        planned = shortened(self.settings, self.prepared)
        ladder.refuse(planned, self.facts)
        host_memory.refuse(planned, self.facts, self.shape)


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
    preflight(run)
    facts = facts or hardware.facts(run.output_dir)
    choose.first(run, facts)
    started = None if processes is None else choose.here(run, facts, processes, alone)
    prepared = prepared or prepare(run)
    limited = derived(run).with_(task=prepared.meta["task"], max_length=prepared.max_length)
    settings, choices = choose.resolve(shortened(limited, prepared), facts, started)
    settings = lengthened(settings, prepared.max_length)
    if prepared.max_length < run.max_length:
        choices["max_length"] = Choice(
            prepared.max_length, f"{run.model} has {prepared.max_length} positions"
        )
    if trained := parent(run.model):
        choices["model"] = Choice(run.model, trained.sentence())
    if limited.model != run.model:
        choices["base"] = Choice(
            limited.model, f"{run.model} with what the run adds to it, made once"
        )
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
    updates, lengths = updates_of(run, prepared), prepared.rows["train"].lengths
    validation = prepared.rows.get("validation")
    settings, more = choose.cadence(
        settings,
        updates,
        int(updates * run.global_batch_size * lengths.mean()),
        int(validation.lengths.sum()) if validation is not None else 0,
    )
    refuse_ineffective(settings, updates, prepared.rows)
    return Setup(run, settings, choices | more, facts, prepared, prepared.base)


def preflight(run: Run) -> None:
    """Looks for what a run names, without importing torch: files of data, the model, names of extensions.

    Raises:
        LorakitError: one of them does not exist.
    """
    files = (run.data, run.validation_data, run.test_data)
    of_run(*files, run.format, run.replay, run.media_folder, ask_hub=False)
    safety.refuse_weights(run.model, Path(base_model.of(run.model).path), run.pickled_weights)
    for folder, name in (("tasks", run.task), ("engines", run.engine)):
        if name != "auto":
            registry.load(folder, name)
    for name in run.log_to:
        registry.load("trackers", name)
    for metric in [] if run.metrics == "auto" else run.metrics:
        for name in [metric] if isinstance(metric, str) else metric:
            registry.load("metrics", name)


def shortened(run: Run, prepared: Prepared) -> Run:
    """The run as its memory is planned: its rows are no longer than the longest that is there."""
    return run.with_(max_length=max(8, min(run.max_length, prepared.longest)))


def lengthened(run: Run, max_length: int) -> Run:
    """The settings with their own `max_length` again: a row of full length fits into a micro-batch."""
    tokens = run.micro_batch_tokens
    room = {"micro_batch_tokens": max_length} if tokens != "auto" and tokens < max_length else {}
    return run.with_(max_length=max_length, **room)


def updates_of(run: Run, prepared: Prepared) -> int:
    """Updates of a run over these rows: `max_updates`, else what its epochs take."""
    return run.max_updates or run.epochs * -(-len(prepared.rows["train"]) // run.global_batch_size)
