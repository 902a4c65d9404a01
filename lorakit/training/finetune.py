"""One whole run in six steps: setup, score before, begin or resume, train, prove, score after."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lorakit import tasks
from lorakit.common.choice import Choice, Choices
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.common.processes import machine
from lorakit.engines import quantization
from lorakit.machine import distributed
from lorakit.machine.distributed import World
from lorakit.machine.hardware import Facts
from lorakit.models import identity
from lorakit.models.parent import parent
from lorakit.models.recorded import verify_files
from lorakit.planning.setup import Setup, setup
from lorakit.results import evaluate, report
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import learning_rate
from lorakit.results.open_run import ANSWERING
from lorakit.results.predict import predict
from lorakit.run import Run, resolved
from lorakit.runs.folder import (
    FORMAT,
    ReadOnlyRunFolder,
    RunFolder,
    versions,
    write_json,
    write_lines,
)
from lorakit.runs.status import Status
from lorakit.tasks import rows
from lorakit.training import base_outcome, checkpoint, folds, forgetting, proof, resume
from lorakit.training.callbacks import Stop, TimePrediction
from lorakit.training.extension import extension
from lorakit.training.session import Session, schedule


def finetune(run: Run, alone: str = "", facts: Facts | None = None) -> RunFolder:
    """Trains in this process and returns the folder of the run. An interrupted run resumes from its checkpoint.

    Under torchrun every process calls this; rank 0 writes.

    Args:
        run: the settings.
        alone: why this is one process where several were wanted.
        facts: the machine, where it has been looked at.

    Raises:
        LorakitError: the input or the run is at fault; `record.json` then says `failed` and why.
    """
    world = distributed.join()
    folder = RunFolder(run.folder) if world.first else ReadOnlyRunFolder(run.folder)
    with folder.locked(), _recorded(folder) as attempt:
        # a refused start leaves what is there as it was
        attempt.writes = "settings" not in folder.record and not resume.can_resume(folder)
        resume.refuse(folder, resume.differences(run, folder))
        _phase(folder, "preparing data and settings")
        plan = setup(run, facts, processes=world.size, alone=alone)
        plan.refuse()
        attempt.writes = world.broadcast_from_rank0(lambda: not resume.finished(plan, folder))
        if not attempt.writes and folder.writable and not folder.settings.exists():
            plan.settings.with_(model=plan.asked.model).write(folder.settings)
        if attempt.writes:
            begin(plan, folder)
            if run.folds and not run.fold:
                folds.each(run, folder, finetune)
            if not execute(plan, folder, world) and run.folds and not run.fold:
                folds.write(folder, run)
        if folder.writable:
            report.write(folder.path)
    return folder


def execute(plan: Setup, folder: RunFolder, world: World) -> Stop | None:
    """From the rows to the evidence; returns why training stopped early, if it did."""
    session = load(plan, folder, world)
    before, general = score_before(plan, session), forgetting.ask_before(plan, session)
    session.resume()
    resumed = session.state.update
    stop = train(session)
    if stop:
        reason = f"{stop.reason} after update {session.state.update}; start it again to resume"
        folder.note(status=Status.STOPPED, error=reason)
        session.engine.close()
        return stop
    proofs, best_update = prove(session, resumed)
    score_after(plan, session, before, general, proofs, best_update)
    return None


def _phase(folder: RunFolder, what: str) -> None:
    """Says in a log what takes the time now; where a terminal has one line of progress, that line says it."""
    if folder.writable and not os.environ.get("TQDM_DISABLE"):
        print(f"{what} …", file=sys.stderr, flush=True)


def begin(plan: Setup, folder: RunFolder) -> None:
    """Notes what the run is, and keeps its rows: a run that is resumed reads what it began with."""
    resuming = resume.can_resume(folder)
    folder.note(
        status=Status.RUNNING,
        format=FORMAT,
        pid=os.getpid(),
        host=machine(),
        error=None,
        settings=folder.record["settings"] if resuming else plan.asked.model_dump(),
        model=plan.asked.model,
        method=method(plan.settings),
        versions=versions(),
        choices=plan.choices,
        machine={**plan.facts.as_dict(), "summary": summary(plan.facts)},
        data=plan.prepared.facts(),
    )
    if folder.writable and not resuming:
        folder.clear()
        plan.prepared.write(folder.rows)
        write_lines(folder.rejected, [asdict(row) for row in plan.prepared.report.rejected])


def load(plan: Setup, folder: RunFolder, world: World) -> Session:
    """Loads the model, and notes what is known of it before training."""
    contents = world.gather(plan.prepared.report.sha256)  # from here on the rows are written
    if len(set(contents)) > 1:
        other = next(i for i, content in enumerate(contents) if content != contents[0])
        raise LorakitError(
            f"process {other} has other data than process 0 ({plan.prepared.report.file}); every host needs "
            "the same file"
        )
    _phase(folder, f"loading {plan.asked.model}")
    sets, meta = plan.prepared.rows, plan.prepared.meta
    if resume.can_resume(folder) and folder.rows.is_dir():
        verify_files(folder, [folder.rows.name])
        sets, meta = rows.read(folder.rows, plan.prepared.processor)
    session = Session.load(plan, folder, world, sets, meta)
    notes = {name: Choice(*note) for name, note in session.engine.notes.items()}
    choices: Choices = plan.choices | notes
    sizes = session.engine.parameters()
    extended = extension(
        plan.settings.schedule,
        folder.record.get("updates", 0) if resume.can_resume(folder) else 0,
        folder.record.get("updates_planned"),
        len(session.batches),
        lambda updates: schedule(session.run, updates),
    )
    if extended:
        choices["max_updates"] = extended
        _phase(folder, f"max_updates: {extended.reason}")
    if folder.writable:
        with atomic_write(folder.settings) as part:
            session.run.with_(model=plan.asked.model).write(part)
    trained = parent(plan.asked.model)
    folder.note(
        choices=choices,
        parent=trained.note() if trained else None,
        trained_with=session.run.model_dump(include={*ANSWERING}),
        base_sha256=plan.base.hash,
        base=identity.note(plan.asked.model, folder.path, plan.base.reader_hash),
        parameters=sum(n for n, _ in sizes.values()),
        trained_parameters=sum(n for n, on in sizes.values() if on),
        updates_planned=len(session.batches),
        peak_memory=_peak(plan, 0),
    )
    return session


def _peak(plan: Setup, measured: int) -> dict[str, Any]:
    predicted = plan.peak_memory
    return {"predicted": predicted["total"], "measured": measured, "parts": predicted}


def score_before(plan: Setup, session: Session) -> Outcome | None:
    """The base model on the test rows. A metric that cannot be computed says so here, not after training."""
    before = _scored(plan, session, "before", again=False)
    if before:
        _statistics(session, before)
    return before


def _metrics(session: Session) -> dict[str, dict]:
    """The metrics of this run with their options."""
    references = session.sets["test"].column("reference")
    objective = tasks.objective_of(session.meta["task"])
    defaults = tasks.metrics_of(session.meta)
    return evaluate.choose(session.run.metrics, defaults, any(references), objective)


def _statistics(session: Session, outcome: Outcome) -> None:
    references = session.sets["test"].column("reference")
    for name, options in _metrics(session).items():
        evaluate.statistics(name, options, outcome, references)


def _scored(plan: Setup, session: Session, when: str, *, again: bool) -> Outcome | None:
    """What the model does on the test rows. It is kept: neither a resumed run nor another run asks the base again."""
    if "test" not in session.sets:
        return None
    path, world, test = session.folder.outcome(when), session.world, session.sets["test"]
    generate = evaluate.needs_answers(_metrics(session))
    key = base_outcome.key(plan, session, generate) if world.first and not again else None

    def kept() -> Outcome | None:
        return Outcome.read(path) if path.exists() and not again else base_outcome.read(key)

    if known := world.broadcast_from_rank0(kept):
        if session.folder.writable and not path.exists():
            _phase(session.folder, f"answers {when} training: as in an earlier run of this base")
            known.write(path)
        return known
    _phase(session.folder, f"answering {len(test)} test rows {when} training")
    outcome = predict(
        session.engine,
        test,
        session.meta,
        plan.prepared.tokenizer,
        max_tokens=resolved(session.run.micro_batch_tokens),
        max_new_tokens=session.run.max_new_tokens,
        when=when,
        visible=world.first,
        generate=generate,
    )
    if session.folder.writable:
        outcome.write(path)
        base_outcome.keep(key, path)
    return outcome


def train(session: Session) -> Stop | None:
    """Runs the updates that are left, and notes what they took."""
    plan_time = TimePrediction(session.folder, session.batches)
    stop = session.train(more=[plan_time])
    state, engine = session.state, session.engine
    workers = session.world.gather(
        {
            "process": distributed.place(),
            "target_tokens": engine.targets_trained,
            "peak_memory": engine.memory(),
        }
    )
    peak = session.folder.record.get("peak_memory", {})
    session.folder.note(
        peak_memory=peak | {"measured": engine.memory()},
        processes=workers,
        stepped_down=engine.steps,
        seconds=state.seconds,
        target_tokens=state.target_tokens,
        skipped=state.skipped,
        tokens_per_second=state.target_tokens / max(state.seconds, 1e-9),
        updates=state.update,
    )
    session.workers = [worker["target_tokens"] for worker in workers]
    return stop


def prove(session: Session, resumed: int) -> tuple[dict[str, str], int]:
    """(proofs that training did what it should, update of the weights that are kept: those of the lowest loss)."""
    engine, state, batches, world = session.engine, session.state, session.batches, session.world
    proofs, best_update = (
        proof.unchanged(engine, session.untouched, state, lambda: batches[0]),
        state.update,
    )
    if any(len(batches.indices(update)) >= world.size for update in range(resumed, state.update)):
        proofs |= proof.shared(session.workers)
    best = session.folder.best_checkpoint
    saved = world.broadcast_from_rank0(lambda: checkpoint.read(best) if best.exists() else None)
    if saved:
        weights, more = saved
        engine.set_weights(weights)
        best_update = more["update"]
    return proofs, best_update


def score_after(
    plan: Setup,
    session: Session,
    before: Outcome | None,
    general: list[bool],
    proofs: dict[str, str],
    best_update: int,
) -> None:
    """The tuned model on the test rows, what is saved of it, and what a fresh process says of that."""
    run, folder, engine = session.run, session.folder, session.engine
    after = _scored(plan, session, "after", again=True)
    _phase(folder, "saving, and loading what was saved in a fresh process")
    saved = folder.saved(run.method)
    engine.save(saved)
    folder.note(files=identity.files(folder.path, (saved.name, folder.rows.name)))
    forgetting.ask_after(plan, session, general)
    said = proof.sample(engine, session.sets, session.meta, run)
    engine.close()  # the fresh process needs the card
    if not folder.writable:
        return
    proofs |= proof.repeated(folder, said, run)
    if before and after:
        _write_scores(session, before, after)
    learning_rate.from_record(folder)
    folder.note(status=Status.DONE, proof=proofs, adapter_from_update=best_update)


def _write_scores(session: Session, before: Outcome, after: Outcome) -> None:
    test, metrics = session.sets["test"], _metrics(session)
    references = test.column("reference")
    answers = [r for r in session.sets["train"].column("reference") if r]
    files, seed = test.column("source"), session.run.seed
    scores = evaluate.scores(metrics, before, after, references, answers, seed, files)
    write_json(session.folder / "scores.json", scores)
    columns = zip(
        test.column("prompt"),
        references,
        before.answers,
        after.answers,
        test.column("file"),
        test.column("row"),
        strict=True,
    )
    write_lines(
        session.folder.answers,
        [
            {"prompt": p, "reference": r, "before": b, "after": a, "where": f"{file}:{row}"}
            for p, r, b, a, file, row in columns
        ],
    )
    session.folder.note(metrics=metrics)


@dataclass
class _Attempt:
    """Whether a failure of this start may be written into the folder."""

    writes: bool = False


@contextlib.contextmanager
def _recorded(folder: RunFolder) -> Iterator[_Attempt]:
    """Notes how a run ends when it ends by an error, and leaves the process group."""
    attempt = _Attempt()
    try:
        yield attempt
    except BaseException as error:
        status, message = ending(error)
        if attempt.writes and folder.path.is_dir():  # else somebody has removed it
            with contextlib.suppress(Exception):
                folder.note(status=status, error=message)
                if folder.writable:
                    report.write(folder.path)
        if distributed.lost(error):
            raise LorakitError(message) from error
        raise
    finally:
        distributed.leave()


def ending(error: BaseException) -> tuple[Status, str]:
    """(status, message) of a run that ends by this error."""
    if distributed.lost(error):
        return (
            Status.INTERRUPTED,
            f"{distributed.LOST}; start again: the run goes on from its checkpoint",
        )
    message = str(error) if isinstance(error, LorakitError) else f"{type(error).__name__}: {error}"
    interrupted = isinstance(error, KeyboardInterrupt)
    return Status.INTERRUPTED if interrupted else Status.FAILED, message


def method(run: Run) -> str:
    """What the record and the report call the way of tuning, e.g. `QLoRA (NF4)`."""
    if run.method == "full":
        return "full fine-tuning"
    rounded = run.fake_quantization
    aware = "" if rounded == "none" else f", quantization-aware ({rounded})"
    return quantization.get(run.quantization).LABEL + aware


def summary(facts: Facts) -> str:
    """The machine in a line."""
    where = ", ".join(c.name for c in facts.cards) or (
        "Apple GPU" if facts.mps else f"CPU, {facts.cores} cores"
    )
    return f"{facts.place}, {facts.system}, {where}, {facts.memory / 1e9:.0f} GB"
