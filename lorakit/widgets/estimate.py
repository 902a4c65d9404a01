"""Memory and time of a run while its settings move: what takes long is counted once, then it is arithmetic."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lorakit import cost, machine, plan
from lorakit.errors import LorakitError
from lorakit.machine import Facts
from lorakit.run import Run

# What a micro-batch's memory depends on, its size aside.
BEARS = ("model", "engine", "method", "quantization", "optimizer", "precision", "gradient_checkpointing", "offload",
         "packing", "shard", "processes", "target_modules", "use_dora", "task")
SIZE = 512  # tokens for which, and for twice as many, memory is counted; between and beyond it grows evenly


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
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


class Estimator:
    """Answers at once from what it has counted; `learn` counts, in the background."""

    def __init__(self, home: str, facts: Facts | None = None):
        self.home, self._given = home, facts
        self._shapes: dict[tuple, cost.Shape] = {}  # for rank 1
        self._counted: dict[str, tuple[dict[str, int], float]] = {}  # (memory at SIZE tokens, bytes per token)
        self._resolved: tuple[Run, Run] | None = None  # as asked for, as it became
        self._lock = threading.Lock()
        self.choices: plan.Choices = {}
        self.lengths: np.ndarray | None = None  # tokens of each training row

    @cached_property
    def facts(self) -> Facts:
        return self._given or machine.facts(self.home)

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
        now = became.with_(**{k: v for k, v in changed.items() if k not in ("name", "data")})
        if isinstance(now.micro_batch_tokens, int) and "max_length" in changed:
            now = became.with_(**changed, micro_batch_tokens=max(now.micro_batch_tokens, run.max_length))
        return self._estimate(now) if self._key(now) in self._counted else None

    def learn(self, run: Run) -> Estimate:
        """Resolves the settings and counts. Raises `LorakitError` when this machine cannot do what they ask for."""
        with self._lock:
            resolved, choices = plan.resolve(run, self.facts)
            key = self._key(resolved)
            if key not in self._counted:
                plain = self._plain(resolved)
                shape = cost.shape(plain)
                self._shapes[self._of(resolved)] = shape
                small, large = (cost.memory(plain.with_(micro_batch_tokens=n), shape) for n in (SIZE, 2 * SIZE))
                self._counted[key] = small, (large["working"] - small["working"]) / SIZE
            _ = self.rate
            self._resolved, self.choices = (run, resolved), choices
            found = self._estimate(resolved)
            try:
                plan.refuse(resolved, self.facts)
            except LorakitError as error:
                return replace(found, refusal=str(error))
            return found

    def _estimate(self, run: Run) -> Estimate:
        unit = self._shapes[self._of(run)]
        shape = replace(unit, adapter=unit.adapter * run.rank)
        small, each = self._counted[self._key(run)]
        fixed = cost.memory(self._plain(run).with_(micro_batch_tokens=SIZE), shape)
        memory = fixed["total"] - fixed["working"] + small["working"] + each * (cost.at_a_time(run) - SIZE)
        tokens = updates = None
        if self.lengths is not None and len(self.lengths):
            rows = run.max_updates * run.global_batch_size if run.max_updates else run.epochs * len(self.lengths)
            updates = run.max_updates or run.epochs * -(-len(self.lengths) // run.global_batch_size)
            tokens = int(rows * np.minimum(self.lengths, run.max_length).mean())
        seconds = None if tokens is None else cost.seconds(run, shape, tokens, self.rate)
        room = self.facts.device_memory
        refusal = "" if memory <= room else f"{memory / 1e9:.1f} GB are needed and {room / 1e9:.1f} GB are there"
        return Estimate(int(memory), room, seconds, updates, refusal)

    def _plain(self, run: Run) -> Run:
        given: dict[str, Any] = {k: v for k, v in run.model_dump().items() if k in BEARS}
        return Run(**given, data="-", rank=1, max_length=SIZE, micro_batch_tokens=SIZE)

    def _key(self, run: Run) -> str:
        return repr([(k, getattr(run, k)) for k in BEARS])

    def _of(self, run: Run) -> tuple:
        return run.model, str(run.target_modules)
