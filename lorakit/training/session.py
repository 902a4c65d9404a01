"""A model in training: engine, batches, state and callbacks. Runs, folds and trials of a search share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit import engines
from lorakit.engines.protocol import Engine
from lorakit.machine.distributed import ALONE, World
from lorakit.planning.setup import Setup
from lorakit.run import Run, resolved
from lorakit.runs.folder import RunFolder
from lorakit.tasks import tools
from lorakit.tasks.batches import Batches
from lorakit.tasks.rows import Rows
from lorakit.training import resume
from lorakit.training.callbacks import (
    Best,
    Callback,
    Callbacks,
    Checkpointing,
    EarlyStopping,
    History,
    Progress,
    Samples,
    Stop,
    StopRequest,
    TimeLimit,
    Validation,
)
from lorakit.training.loop import State, train
from lorakit.training.range_test import with_rate, with_some_rate
from lorakit.training.reference import with_reference
from lorakit.training.trackers import Trackers

EVA_UPDATES = 16  # whose rows decide what an adapter begins with


def batches_of(train: Rows, run: Run, packing: bool, world: World = ALONE) -> Batches:
    """The updates of a run, this process's share of them."""
    return Batches(
        train,
        train.lengths,
        global_batch_size=run.global_batch_size,
        packing=packing,
        seed=run.seed,
        micro_batch_size=resolved(run.micro_batch_size),
        micro_batch_tokens=resolved(run.micro_batch_tokens),
        epochs=run.epochs,
        max_updates=run.max_updates,
        rank=world.rank,
        processes=world.size,
    )


def schedule(run: Run, updates: int) -> Callable[[int], float]:
    """Learning rate of update u (from 0): a linear warm-up, then constant, linear to 0, or half a cosine to 0."""
    warm, peak = math.ceil(run.warmup_ratio * updates), resolved(run.learning_rate)
    falling: dict[str, Callable[[float], float]] = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    }

    def rate(update: int) -> float:
        if update < warm:
            return peak * (update + 1) / warm
        done = (update - warm) / max(1, updates - warm)
        return peak * falling[run.schedule](done)

    return rate


@dataclass
class Session:
    """What the steps of a run work on."""

    run: Run  # resolved
    folder: RunFolder
    world: World
    engine: Engine
    sets: Mapping[str, Rows]
    meta: dict[str, Any]
    batches: Batches
    state: State = field(default_factory=State)
    best: Best = field(default_factory=Best)
    untouched: dict[str, int] = field(default_factory=dict)  # fingerprint before training
    workers: list[int] = field(default_factory=list)  # target tokens that each process trained

    @classmethod
    def load(
        cls,
        plan: Setup,
        folder: RunFolder,
        world: World,
        sets: Mapping[str, Rows],
        meta: dict[str, Any],
    ) -> Session:
        """Loads the weights into the engine that was chosen."""
        run = plan.settings
        engine = engines.get(run.engine).load(with_some_rate(run), classes=meta["classes"])
        if meta.get("tools"):
            engine.tokenizer = tools.reader(engine.tokenizer)
        sets = with_reference(engine, sets, run, folder.rows, world)
        batches = batches_of(sets["train"], run, engine.packing, world)
        if run.adapter_init == "eva" and not resume.can_resume(folder):
            some = range(min(EVA_UPDATES, len(batches)))
            engine.begin_with([batch for i in some for batch in batches[i] if len(batch.ids)])
        run = with_rate(engine, batches, run, folder, world)
        untouched = engine.fingerprint()
        return cls(run, folder, world, engine, sets, meta, batches, untouched=untouched)

    def resume(self) -> None:
        """From the last checkpoint, where there is one."""
        self.state, self.best = resume.load_state(self.engine, self.folder, self.world)

    def train(
        self,
        more: Sequence[Callback] = (),
        report: Callable[[int, float], None] = lambda update, loss: None,
    ) -> Stop | None:
        """Runs the updates that are left; returns why training stopped before the last of them, if it did.

        `more` are called after the run's own callbacks; `report` is told every validation.
        """
        run, folder, first = self.run, self.folder, self.world.first
        request, early = StopRequest(), EarlyStopping(self.best, run.early_stopping)
        if early.reached:
            return None
        trackers = Trackers(run.log_to if first else [], run.name, run.model_dump(), folder.path)
        history = History(folder, trackers)
        callbacks: list[Callback] = [
            history,
            Progress(len(self.batches), self.state.update, visible=first),
            *self._validations(history, report),
            request,
            early,
            TimeLimit(run.max_minutes),
            Checkpointing(self.engine, folder, self.best, resolved(run.checkpoint_every)),
            *more,
        ]
        hooks = Callbacks(callbacks, len(self.batches), self.world)
        rate = schedule(run, len(self.batches))
        with request.listening():
            try:
                train(self.engine, self.batches, self.state, rate, hooks.after_update)
            finally:
                hooks.close()
        if self.state.update == len(self.batches):
            return None
        return next((stop for stop in hooks.stops if not stop.complete), None)

    def _validations(
        self, history: History, report: Callable[[int, float], None]
    ) -> list[Callback]:
        run = self.run
        if not run.validate_every or "validation" not in self.sets:
            return []
        validation = Validation(
            self.engine,
            self.sets["validation"],
            self.folder,
            history.write,
            self.best,
            every=resolved(run.validate_every),
            updates=len(self.batches),
            max_rows=resolved(run.micro_batch_size),
            max_tokens=resolved(run.micro_batch_tokens),
            report=report,
        )
        if not run.samples or self.sets["validation"].classes:
            return [validation]
        return [validation, Samples(validation, run.samples, self.meta, run.max_new_tokens)]
