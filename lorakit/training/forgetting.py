"""General questions before and after a chat run, as many as a tenth of its predicted time allows."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from lorakit import tasks
from lorakit.planning.setup import Setup
from lorakit.results import evidence
from lorakit.results.evidence import forgotten
from lorakit.runs.folder import write_json
from lorakit.training.session import Session

SHARE = 0.05  # of the predicted seconds of training, before it and after it
SHORTEST = 1e13  # FLOP of training; of shorter runs not even the time is measured
FEWEST = forgotten.FEWEST


def seconds_allowed(plan: Setup) -> float:
    """Seconds for the questions on either side of training; 0 where none are asked."""
    task, asked, meta = tasks.get(plan.task), plan.settings.general_questions, plan.prepared.meta
    run = plan.asked
    if not asked or run.fold or run.shuffle_answers or not forgotten.asks(task, meta):
        return 0.0
    if asked != "auto":
        return float("inf")
    tokens = (
        plan.updates * plan.asked.global_batch_size * plan.prepared.rows["train"].lengths.mean()
    )
    shape = plan.shape
    if 4 * (shape.linear + shape.vocabulary * shape.hidden) * tokens < SHORTEST:
        return 0.0
    return SHARE * plan.seconds()[0]


def within(seconds: float, session: Session, total: int) -> Callable[[int], bool]:
    """Whether one group of questions more fits, and at least `FEWEST` will; the same on all processes."""
    started = time.monotonic()

    def more(done: int) -> bool:
        spent = time.monotonic() - started
        needed = min(total, max(FEWEST, done + forgotten.TOGETHER))
        fits = not done or spent * needed / done <= seconds
        return bool(session.world.broadcast_from_rank0(lambda: fits))

    return more


def ask_before(plan: Setup, session: Session) -> list[bool]:
    """Which questions the base answers rightly; none where they are not asked. A resumed run reads them."""
    path, world = session.folder / "outcomes/general_questions.json", session.world
    known = world.broadcast_from_rank0(
        lambda: json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    )
    if known is not None:
        return list(known)
    seconds, items = seconds_allowed(plan), _items(plan)
    if not world.broadcast_from_rank0(lambda: seconds > 0):
        return []
    if session.folder.writable:
        print(f"asking {len(items)} general questions at most …", file=sys.stderr, flush=True)
    found = forgotten.answers_right(
        session.engine, session.meta, items, more=within(seconds, session, len(items))
    )
    if len(found) < min(FEWEST, len(items)):
        found = []
    if session.folder.writable:
        path.parent.mkdir(exist_ok=True)
        write_json(path, found)
    return found


def ask_after(plan: Setup, session: Session, before: list[bool]) -> None:
    """Asks the tuned model the same questions, and keeps what changed with the run."""
    if not before:
        return
    items, started = _items(plan)[: len(before)], time.process_time()
    after = forgotten.answers_right(session.engine, session.meta, items)
    folder, every = session.folder, len(forgotten.suite())
    note = f"A sample of {len(items)} of {every} questions, spread over the kinds; lorakit forgotten asks all."
    if folder.writable:
        kinds = [str(item["kind"]) for item in items]
        seconds, weights = time.process_time() - started, evidence.weights(folder)
        more = {"note": note if len(items) < every else ""}
        evidence.keep(folder, forgotten.said(kinds, before, after, 2 * seconds, weights, **more))


def _items(plan: Setup) -> list:
    items, asked = forgotten.spread(forgotten.suite()), plan.settings.general_questions
    return items if asked == "auto" else items[:asked]
