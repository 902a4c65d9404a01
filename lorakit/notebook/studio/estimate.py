"""Memory and time of a run while its settings move: what takes long is counted once, then it is arithmetic."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lorakit.common.choice import Choices
from lorakit.common.errors import LorakitError
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.planning import choose
from lorakit.planning import memory as cost
from lorakit.planning.setup import setup
from lorakit.run import Run
from lorakit.tasks.dataset import prepare

# What a micro-batch's memory depends on, its size aside.
BEARS = (
    "model",
    "engine",
    "method",
    "quantization",
    "fake_quantization",
    "optimizer",
    "precision",
    "gradient_checkpointing",
    "offload",
    "packing",
    "shard",
    "processes",
    "target_modules",
    "use_dora",
    "dropout",
    "task",
)
SIZES, RANKS = (
    (512, 1024),
    (8, 64),
)  # tokens and ranks memory is counted for; between and beyond it grows evenly


@dataclass(frozen=True)
class Estimate:
    """`memory`, `room` in bytes, `seconds` of training; `words` for people."""

    memory: int
    room: int
    seconds: float | None
    updates: int | None
    refusal: str = ""

    @property
    def fits(self) -> bool:
        return not self.refusal and self.memory <= self.room

    @property
    def words(self) -> str:
        time = "" if self.seconds is None else f", about {spoken(self.seconds)} of training"
        updates = "" if self.updates is None else f", {self.updates:,} updates"
        return f"{self.memory / 1e9:.2f} GB of the {self.room / 1e9:.1f} GB that are there{updates}{time}"


def spoken(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`"""
    minutes = seconds / 60
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if minutes < 120
        else f"{minutes / 60:.1f} h"
    )


class Estimator:
    """Answers at once from what it has counted; `learn` counts, in the background."""

    def __init__(self, home: str, facts: Facts | None = None):
        self.home, self._given = home, facts
        self._shapes: dict[tuple, cost.Shape] = {}  # for rank 1
        self._counted: dict[
            str, np.ndarray
        ] = {}  # bytes that a micro-batch takes, of each rank and size
        self._resolved: tuple[Run, Run] | None = None  # as asked for, as it became
        self._lock = threading.Lock()
        self.choices: Choices = {}
        self.lengths: np.ndarray | None = None  # tokens of each training row

    @cached_property
    def facts(self) -> Facts:
        return self._given or hardware.facts(self.home)

    @cached_property
    def rate(self) -> float:
        return cost.matmul_rate()

    def quick(self, run: Run) -> Estimate | None:
        """Within milliseconds; None when something of this run was not counted yet."""
        if self._resolved is None:
            return None
        asked, became = self._resolved
        changed = {k: v for k, v in run.given().items() if asked.model_dump().get(k) != v}
        if set(changed) & (set(BEARS) - {"task"}):
            return None
        if isinstance(became.micro_batch_tokens, int):  # a row of full length has to fit
            changed.setdefault("micro_batch_tokens", max(became.micro_batch_tokens, run.max_length))
        now = became.with_(**changed)
        return self._estimate(now) if self._key(now) in self._counted else None

    def learn(self, run: Run) -> Estimate:
        """Resolves the settings and counts. Raises `LorakitError` when this machine cannot do what they ask for."""
        with self._lock:
            resolved, choices = self._resolve(run)
            key = self._key(resolved)
            if key not in self._counted:
                shape = self._shapes.setdefault(
                    self._of(resolved), cost.shape(self._plain(resolved, rank=1))
                )
                self._counted[key] = np.array(
                    [
                        [
                            cost.working(
                                self._plain(resolved, rank=rank, micro_batch_tokens=size), shape
                            )
                            for size in SIZES
                        ]
                        for rank in RANKS
                    ]
                )
            _ = self.rate
            self._resolved, self.choices = (run, resolved), choices
            found = self._estimate(resolved)
            try:
                choose.refuse(resolved, self.facts)
            except LorakitError as error:
                return replace(found, refusal=str(error))
            return found

    def _resolve(self, run: Run) -> tuple[Run, Choices]:
        """As the run will; while its rows cannot be read, without what follows from them."""
        try:
            prepared = prepare(run)
        except LorakitError:
            self.lengths = None
            return choose.resolve(run, self.facts)
        self.lengths = prepared.rows["train"].lengths
        found = setup(run, self.facts, prepared=prepared)
        return found.settings, found.choices

    def _estimate(self, run: Run) -> Estimate:
        unit = self._shapes[self._of(run)]
        shape = replace(unit, adapter=unit.adapter * run.rank)
        counted = cost.memory(self._plain(run, rank=RANKS[0], micro_batch_tokens=SIZES[0]), shape)
        memory = counted["total"] - counted["working"] + self._working(run)
        tokens = updates = None
        if self.lengths is not None and len(self.lengths):
            rows = (
                run.max_updates * run.global_batch_size
                if run.max_updates
                else run.epochs * len(self.lengths)
            )
            updates = run.max_updates or run.epochs * -(-len(self.lengths) // run.global_batch_size)
            tokens = int(rows * np.minimum(self.lengths, run.max_length).mean())
        seconds = None if tokens is None else cost.seconds(run, shape, tokens, self.rate)
        room = self.facts.device_memory
        refusal = (
            ""
            if memory <= room
            else f"{memory / 1e9:.1f} GB are needed and {room / 1e9:.1f} GB are there"
        )
        return Estimate(int(memory), room, seconds, updates, refusal)

    def _working(self, run: Run) -> float:
        """Between what was counted: even in the rank, and even in the tokens at a time."""
        ranked = self._counted[self._key(run)]
        sized = ranked[0] + (ranked[1] - ranked[0]) * (run.rank - RANKS[0]) / (RANKS[1] - RANKS[0])
        return sized[0] + (sized[1] - sized[0]) * (cost.at_a_time(run) - SIZES[0]) / (
            SIZES[1] - SIZES[0]
        )

    def _plain(self, run: Run, **more: Any) -> Run:
        given: dict[str, Any] = {k: v for k, v in run.model_dump().items() if k in BEARS}
        return Run(**given, data="-", max_length=SIZES[0], **more)

    def _key(self, run: Run) -> str:
        return repr([(k, getattr(run, k)) for k in BEARS])

    def _of(self, run: Run) -> tuple:
        return run.model, str(run.target_modules)
