"""What happens between updates: progress, validation, checkpoints, limits. Each is one small class.

`after_update(state, line)` is called after every update, in the order of the list, and may return a `Stop`. When all
processes have agreed on whether to stop, `agreed(state, ending)` is called. A new one is a subclass of `Callback`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm.auto import tqdm

from lorakit.engines.protocol import Engine
from lorakit.machine.distributed import World
from lorakit.planning import memory
from lorakit.results import evaluate
from lorakit.runs.folder import RunFolder
from lorakit.tasks.batches import Batches
from lorakit.tasks.rows import Rows
from lorakit.training import checkpoint
from lorakit.training.loop import State

MEASURED = 5  # updates from which the time of a run is predicted


@dataclass(frozen=True)
class Stop:
    """Why training ends before its last update; `complete` where the run counts as finished all the same."""

    reason: str
    complete: bool = False


@dataclass
class Best:
    """The lowest validation loss so far; a checkpoint keeps it beside `State`."""

    update: int = 0
    loss: float = math.inf
    worse: int = 0  # validations since


class Callback:
    """Does nothing. Subclasses override what they need."""

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        """`line` is the update's line of the history."""
        return None

    def agreed(self, state: State, ending: bool) -> None:
        """All processes have the same `ending`: whether this was the last update of this start."""

    def close(self) -> None:
        """Training has ended, also by an error."""


class Callbacks:
    """Several, called in their order. Training ends for all processes when one of any process asks for it."""

    def __init__(self, callbacks: Sequence[Callback], updates: int, world: World):
        self.callbacks, self.updates, self.world = callbacks, updates, world
        self.stops: list[Stop] = []

    def after_update(self, state: State, line: dict[str, Any]) -> bool:
        """Returns whether training ends here."""
        mine = [stop for each in self.callbacks if (stop := each.after_update(state, line))]
        self.stops = [stop for stops in self.world.gather(mine) for stop in stops]
        ending = bool(self.stops) or state.update == self.updates
        for each in self.callbacks:
            each.agreed(state, ending)
        return ending

    def close(self) -> None:
        """Closes each, the last first."""
        for each in reversed(self.callbacks):
            each.close()


class History(Callback):
    """Writes `history.jsonl`; trackers get the same lines."""

    def __init__(self, folder: RunFolder, trackers: Any = None):
        self.folder, self.trackers = folder, trackers

    def write(self, line: dict[str, Any]) -> None:
        """One line: of an update or of a validation."""
        self.folder.append(line)
        if self.trackers:
            self.trackers.log(line)

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        self.write(line)
        return None

    def close(self) -> None:
        if self.trackers:
            self.trackers.close()


class TimePrediction(Callback):
    """Notes in the record how long the run will take, once its first updates have been timed."""

    def __init__(self, folder: RunFolder, batches: Batches):
        self.folder, self.batches = folder, batches
        self.timed: list[tuple[int, float]] = []  # input tokens and seconds of an update

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        if len(self.timed) < MEASURED:
            self.timed.append((self.batches.tokens(state.update - 1), line["seconds"]))
            if len(self.timed) == MEASURED == state.update:
                total = memory.total_seconds(self.timed, self.batches.total_tokens)
                self.folder.note(seconds_predicted=total)
        return None


class Progress(Callback):
    """Draws a progress bar with the loss."""

    def __init__(self, updates: int, done: int, visible: bool = True):
        self.bar = tqdm(
            total=updates,
            initial=done,
            desc="training",
            unit="update",
            mininterval=0.5,
            disable=not visible,
        )

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        self.bar.update()
        self.bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        return None

    def close(self) -> None:
        self.bar.close()


class Validation(Callback):
    """Measures the validation loss every so many updates and after the last, and keeps the best weights.

    `report(update, loss)` is told each loss; it may raise to end training.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        folder: RunFolder,
        write: Callable[[dict[str, Any]], None],
        best: Best,
        *,
        every: int,
        updates: int,
        max_rows: int,
        max_tokens: int,
        report: Callable[[int, float], None] = lambda update, loss: None,
    ):
        self.engine, self.rows, self.folder, self.write = engine, rows, folder, write
        self.best, self.every, self.updates, self.report = best, every, updates, report
        self.limits = {"max_rows": max_rows, "max_tokens": max_tokens}

    def due(self, state: State) -> bool:
        """Whether it validates after this update."""
        return bool(self.every) and (state.update == self.updates or state.update % self.every == 0)

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        if not self.due(state):
            return None
        loss = evaluate.mean_loss(self.engine, self.rows, **self.limits)
        self.write({"update": state.update, "validation_loss": loss})
        self.report(state.update, loss)
        if loss < self.best.loss:
            self.best.update, self.best.loss, self.best.worse = state.update, loss, 0
            weights = self.engine.weights()  # all processes: theirs may be shards
            if self.folder.writable:
                checkpoint.write(self.folder.best_checkpoint, weights, {"update": state.update})
        else:
            self.best.worse += 1
        return None


class Samples(Callback):
    """Answers a few validation questions at every validation, into `samples.jsonl`."""

    def __init__(
        self,
        validation: Validation,
        count: int,
        meta: dict[str, Any],
        max_new_tokens: int,
    ):
        self.validation, self.meta, self.max_new_tokens = validation, meta, max_new_tokens
        self.rows = validation.rows.first(count)

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        if not self.validation.due(state):
            return None
        engine = self.validation.engine
        answers = evaluate.generate(
            engine,
            self.rows,
            engine.tokenizer,
            self.meta["stop_ids"],
            self.max_new_tokens,
            opening=self.meta["opening"],
        )
        for prompt, answer in zip(self.rows.column("prompt"), answers, strict=True):
            if answer is not None:
                sample = {"update": state.update, "prompt": prompt, "answer": answer}
                self.validation.folder.append(sample, "samples.jsonl")
        return None


class EarlyStopping(Callback):
    """Ends the run after so many validations without a better loss."""

    def __init__(self, best: Best, patience: int | None):
        self.best, self.patience = best, patience

    @property
    def reached(self) -> bool:
        """Also true of a run that is started again after it has ended so."""
        return bool(self.patience) and self.best.worse >= (self.patience or 0)

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        return Stop("the validation loss stopped falling", complete=True) if self.reached else None


class TimeLimit(Callback):
    """Ends the run with a checkpoint when its minutes are over."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic):
        self.minutes, self.clock, self.start = minutes, clock, clock()

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        if self.minutes and self.clock() - self.start > 60 * self.minutes:
            return Stop(f"max_minutes={self.minutes:g} is over")
        return None


class StopRequest(Callback):
    """Ends the run with a checkpoint on an interrupt or a termination. A second interrupt ends the process at once.

    Terminations in quick succession count as one: a launcher and the system (Slurm, say) both pass it on.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM within this block; in a thread other than the main one nobody sends any."""
        before: dict[int, Any] = {}

        def handle(number: int, frame: Any) -> None:
            self.times.append(time.monotonic())
            hurried = number == signal.SIGINT or self.times[-1] - self.times[0] > 5
            if len(self.times) > 1 and hurried:
                signal.signal(number, before[number])
                signal.raise_signal(number)

        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, handle)
        try:
            yield
        finally:
            for kept, handler in before.items():
                signal.signal(kept, handler)

    def after_update(self, state: State, line: dict[str, Any]) -> Stop | None:
        return Stop("stopped on request") if self.times else None


class Checkpointing(Callback):
    """Writes everything that resuming needs, every so many updates and at the end."""

    def __init__(self, engine: Engine, folder: RunFolder, best: Best, every: int):
        self.engine, self.folder, self.best, self.every = engine, folder, best, every

    def agreed(self, state: State, ending: bool) -> None:
        if not (ending or state.update % self.every == 0):
            return
        tensors = self.engine.state()  # all processes: theirs may be shards
        if self.folder.writable:
            meta = {"state": asdict(state), "best": asdict(self.best)}
            checkpoint.write(self.folder.last_checkpoint, tensors, meta)
