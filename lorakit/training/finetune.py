"""One whole run, read top to bottom: prepare, load, score before, train, score after, save, prove, record."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.choice import Choice, Choices
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.engines import quantization
from lorakit.machine import distributed, hardware
from lorakit.machine.distributed import ALONE, Crew
from lorakit.models import base_model
from lorakit.planning import memory
from lorakit.planning.setup import setup, updates_of
from lorakit.results import evaluate, report
from lorakit.results.evaluate import Outcome
from lorakit.results.predict import predict
from lorakit.run import Run
from lorakit.runs import folder as record
from lorakit.runs.folder import Folder, Onlooker
from lorakit.tasks import rows
from lorakit.tasks.batches import Batches
from lorakit.tasks.dataset import Prepared
from lorakit.training import checkpoint, folds
from lorakit.training import proof as prove
from lorakit.training.loop import State, train
from lorakit.training.reference import ranked_by_base, with_reference
from lorakit.training.trackers import Trackers

LAST, BEST = "checkpoint/last.safetensors", "checkpoint/best.safetensors"


def finetune(run: Run, alone: str = "") -> Folder:
    """Runs it in this process and returns its folder. A run that was cut goes on where its checkpoint stands.

    Under torchrun all processes call this; the first one writes. `alone` says why this is one process where several
    were to be. Raises `LorakitError` when the input or the run is at fault; `record.json` then says `failed` and why.
    """
    crew, started = distributed.join(), False
    folder = Folder(run.folder) if crew.first else Onlooker(run.folder)
    with folder.locked():
        try:
            # a refused start leaves what is there as it was
            started = "settings" not in folder.record and not begun(folder)
            plan = setup(run, processes=crew.size, alone=alone)
            plan.refuse()
            resolved, choices, prepared = plan.settings, plan.choices, plan.prepared
            started = crew.told(lambda: not finished(run, folder, prepared))
            if started:
                if crew.first:
                    begin(run, resolved, choices, plan.facts, folder, prepared)
                crossed = bool(run.folds and not run.fold)
                if crossed:
                    folds.each(run, folder, finetune)
                execute(resolved, choices, folder, prepared, crew)
                if crossed and folder.record["status"] == "done":
                    folds.write(folder, run)
                    report.write(folder.path)
            elif crew.first:
                report.write(folder.path)
        except BaseException as error:
            status, words = ending(error)
            if started:
                with contextlib.suppress(Exception):
                    folder.note(status=status, error=words)
                    if crew.first:
                        report.write(folder.path)
            if distributed.lost(error):
                raise LorakitError(words) from error
            raise
        finally:
            distributed.leave()
    return folder


def ending(error: BaseException) -> tuple[str, str]:
    """(status, words) of a run that ends by this."""
    if distributed.lost(error):
        return (
            "interrupted",
            f"{distributed.LOST}; start again: the run goes on from its checkpoint",
        )
    words = str(error) if isinstance(error, LorakitError) else f"{type(error).__name__}: {error}"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", words


def begin(
    run: Run,
    resolved: Run,
    choices: Choices,
    facts: hardware.Facts,
    folder: Folder,
    prepared: Prepared,
) -> None:
    """What a run is, into its folder; its rows once: a run that goes on reads what it began with."""
    settings = folder.record["settings"] if begun(folder) else run.model_dump()
    folder.note(
        status="running",
        pid=os.getpid(),
        error=None,
        settings=settings,
        model=run.model,
        method=method(resolved),
        versions=record.versions(),
        choices=choices,
        machine={**facts.as_dict(), "summary": summary(facts)},
        data=prepared.facts(),
    )
    if not begun(folder):
        (folder / BEST).unlink(missing_ok=True)
        prepared.write(folder / "rows")
        record.write_lines(folder / "rejected.jsonl", [asdict(r) for r in prepared.report.rejected])
        (folder / "history.jsonl").unlink(missing_ok=True)


def execute(run: Run, choices: Choices, folder: Folder, prepared: Prepared, crew: Crew) -> None:
    """From the rows on disk to the evidence. The first process writes; the others compute the same beside it."""
    contents = crew.gather(prepared.report.sha256)  # the rows are written
    if len(set(contents)) > 1:
        other = next(i for i, content in enumerate(contents) if content != contents[0])
        raise LorakitError(
            f"process {other} has other data than process 0 ({prepared.report.file}); every host needs "
            "the same file"
        )
    here = folder / "rows"
    # Another host has rows of its own, made from the same content.
    sets, meta = rows.read(
        here if (here / "meta.json").exists() else prepared.path / "rows", prepared.processor
    )
    engine = registry.load("engines", run.engine).load(run, classes=meta["classes"])
    choices.update(engine.notes)
    sets = with_reference(engine, sets, run, here, crew)
    if ranked := ranked_by_base(sets["train"]):
        choices["reference"] = Choice(*ranked)
    batches = batches_of(sets["train"], run, engine.packing, crew)
    sizes = engine.parameters()
    predicted = memory.memory(run)
    if crew.first:
        with atomic_write(folder / "run.yaml") as part:
            run.write(part)
    folder.note(
        choices=choices,
        base_sha256=base_model.hash_of(run.model),
        parameters=sum(n for n, _ in sizes.values()),
        trained_parameters=sum(n for n, on in sizes.values() if on),
        updates_planned=len(batches),
        peak_memory={"predicted": predicted["total"], "measured": 0, "parts": predicted},
    )

    untouched = engine.fingerprint()
    before = scored(
        engine, sets, meta, run, prepared.tokenizer, here / "before.json", "before", crew
    )
    chosen: dict[str, dict] = {}
    if before:  # a metric that cannot be computed says so before training, not after
        references = sets["test"].column("reference")
        task = registry.load("tasks", meta["task"])
        chosen = evaluate.choose(
            run.metrics, task.METRICS, any(references), tasks.objective_of(meta["task"])
        )
        for name, options in chosen.items():
            evaluate.statistics(name, options, before, references)
    state, best = State(), {"update": 0, "loss": math.inf, "worse": 0}
    if saved := crew.told(lambda: kept(folder / LAST)):
        tensors, more = saved
        engine.restore(tensors)
        state, best = State(**more["state"]), more["best"]
    folder.rewind(state.update)
    resumed = state.update
    stopped = loop(engine, batches, state, best, sets, run, folder, crew, meta)
    workers = crew.gather(
        {
            "process": distributed.place(),
            "target_tokens": engine.targets_trained,
            "peak_memory": engine.memory(),
        }
    )
    folder.note(
        peak_memory={
            "predicted": predicted["total"],
            "measured": engine.memory(),
            "generation": engine.generation_memory(),
            "parts": predicted,
        },
        processes=workers,
        stepped_down=engine.steps,
        seconds=state.seconds,
        target_tokens=state.target_tokens,
        skipped=state.skipped,
        tokens_per_second=state.target_tokens / max(state.seconds, 1e-9),
        updates=state.update,
    )
    if stopped:
        folder.note(status="stopped", error=stopped)
        engine.close()
        return

    proof, from_update = prove.unchanged(engine, untouched, state, batches[0]), state.update
    if any(len(batches.indices(update)) >= crew.size for update in range(resumed, state.update)):
        proof |= prove.shared([w["target_tokens"] for w in workers])
    if saved := crew.told(lambda: kept(folder / BEST)):
        tensors, more = saved
        engine.set_weights(tensors)
        from_update = more["update"]
    after = scored(
        engine, sets, meta, run, prepared.tokenizer, here / "after.json", "after", crew, anew=True
    )
    engine.save(folder / ("adapter" if run.method == "lora" else "model"))
    said = prove.sample(engine, sets, meta, run)
    engine.close()  # the fresh process needs the card
    if crew.first:
        proof |= prove.repeated(folder, said, run)
        if before and after:
            test, answers = sets["test"], [r for r in sets["train"].column("reference") if r]
            record.write_json(
                folder / "scores.json",
                evaluate.scores(chosen, before, after, references, answers, run.seed),
            )
            record.write_lines(
                folder / "answers.jsonl",
                [
                    {"prompt": p, "reference": r, "before": b, "after": a, "where": f"{f}:{n}"}
                    for p, r, b, a, f, n in zip(
                        test.column("prompt"),
                        references,
                        before.answers,
                        after.answers,
                        test.column("file"),
                        test.column("row"),
                        strict=True,
                    )
                ],
            )
            folder.note(metrics=chosen)
        folder.note(status="done", proof=proof, adapter_from_update=from_update)
        report.write(folder.path)


def kept(path: Path) -> tuple[dict, dict] | None:
    """A checkpoint, where there is one."""
    return checkpoint.read(path) if path.exists() else None


def batches_of(train: rows.Rows, run: Run, packing: bool, crew: Crew = ALONE) -> Batches:
    """The updates of a run, this process's share of them."""
    return Batches(
        train,
        train.lengths,
        global_batch_size=run.global_batch_size,
        packing=packing,
        seed=run.seed,
        micro_batch_size=run.micro_batch_size,
        micro_batch_tokens=run.micro_batch_tokens,
        epochs=run.epochs,
        max_updates=run.max_updates,
        rank=crew.rank,
        processes=crew.size,
    )


def begun(folder: Folder) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (folder / LAST).exists()


def finished(run: Run, folder: Folder, prepared: Prepared) -> bool:
    """Whether there is nothing left to do. Raises `LorakitError` when the folder holds another run."""
    known = folder.record
    if not begun(folder) and known["status"] != "done":
        return False
    if not {"settings", "data", "updates_planned"} <= known.keys():
        raise LorakitError(
            f"{folder.path} holds a checkpoint, and record.json does not say of which settings; "
            "give this run another name, or delete the folder"
        )
    differing = run.differences(Run(**known["settings"]))
    if (folder / "run.yaml").exists():  # what `auto` became is no difference
        resolved = run.differences(Run.read(folder / "run.yaml"))
        differing = {k: v for k, v in differing.items() if k in resolved}
    differences = [
        f"{k}: {theirs!r} there, {mine!r} now" for k, (mine, theirs) in differing.items()
    ]
    if known["data"]["sha256"] != prepared.report.sha256:
        differences.append(f"the content of the data: {known['data']['file']} has changed since")
    bases = {known.get("base_sha256", run.model), base_model.hash_of(run.model)}
    if len(bases) > 1 and run.model not in bases:  # the name stands for files that were not at hand
        differences.append(f"the weights of the base: {run.model} has changed since")
    if differences:
        raise LorakitError(
            f"{folder.path} holds a run with other settings ({'; '.join(differences)}). "
            f"Give this run another name, restore the settings, or delete the folder"
        )
    return known["status"] == "done" and updates_of(run, prepared) <= known["updates_planned"]


def method(run: Run) -> str:
    """What the record and the report call the way of tuning, e.g. `QLoRA (NF4)`."""
    if run.method == "full":
        return "full fine-tuning"
    rounded = run.fake_quantization
    aware = "" if rounded == "none" else f", quantization-aware ({rounded})"
    return quantization.get(run.quantization).LABEL + aware


def summary(facts: hardware.Facts) -> str:
    where = ", ".join(c.name for c in facts.cards) or (
        "Apple GPU" if facts.mps else f"CPU, {facts.cores} cores"
    )
    return f"{facts.place}, {facts.system}, {where}, {facts.memory / 1e9:.0f} GB"


def schedule(run: Run, updates: int) -> Callable[[int], float]:
    """Learning rate of update u (from 0): a linear warm-up, then constant, linear to 0, or half a cosine to 0."""
    warm = math.ceil(run.warmup_ratio * updates)

    def rate(update: int) -> float:
        if update < warm:
            return run.learning_rate * (update + 1) / warm
        done = (update - warm) / max(1, updates - warm)
        return (
            run.learning_rate
            * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
                run.schedule
            ]
        )

    return rate


def loop(
    engine: Any,
    batches: Batches,
    state: State,
    best: dict,
    sets: dict,
    run: Run,
    folder: Folder,
    crew: Crew,
    meta: dict | None = None,
) -> str:
    """Trains; returns "" when all updates are done (or validation stopped them), else why it stopped early."""
    start, asked, stop = (
        time.monotonic(),
        [],
        [],
    )  # asked: of this process, at any moment; stop: agreed on by all
    limits = {"max_rows": run.micro_batch_size, "max_tokens": run.micro_batch_tokens}
    bar = tqdm(
        total=len(batches),
        initial=state.update,
        desc="training",
        unit="update",
        mininterval=0.5,
        disable=not crew.first,
    )

    trackers = Trackers(run.log_to if crew.first else [], run.name, run.model_dump(), folder.path)

    def note(line: dict) -> None:
        folder.append(line)
        trackers.log(line)

    def save() -> None:
        tensors = engine.state()
        if crew.first:
            checkpoint.write(folder / LAST, tensors, {"state": asdict(state), "best": best})

    def enough() -> bool:
        return bool(run.early_stopping) and best["worse"] >= run.early_stopping

    def validate() -> None:
        loss = evaluate.mean_loss(engine, sets["validation"], **limits)
        note({"update": state.update, "validation_loss": loss})
        if run.samples and meta and not sets["validation"].classes:
            answered(engine, sets["validation"].first(run.samples), meta, run, folder, state.update)
        if loss < best["loss"]:
            best.update(update=state.update, loss=loss, worse=0)
            tensors = engine.weights()
            if crew.first:
                checkpoint.write(folder / BEST, tensors, {"update": state.update})
        else:
            best["worse"] += 1

    spent: list[tuple[int, float]] = []  # input tokens and seconds of this process's first updates

    def after_update(state: State, line: dict) -> bool:
        note(line)
        if len(spent) < 5:
            spent.append((batches.tokens(state.update - 1), line["seconds"]))
            if len(spent) == 5 == state.update:
                folder.note(seconds_predicted=memory.total_seconds(spent, batches.total_tokens))
        bar.update()
        bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        last = state.update == len(batches)
        if (
            run.validate_every
            and "validation" in sets
            and (last or state.update % run.validate_every == 0)
        ):
            validate()
        if run.max_minutes and time.monotonic() - start > 60 * run.max_minutes:
            asked.append(f"max_minutes={run.max_minutes:g} is over")
        stop[:] = [why for said in crew.gather(asked[:]) for why in said]
        ending = bool(stop) or last or enough()
        if ending or state.update % run.checkpoint_every == 0:
            save()
        return ending

    with (
        bar,
        contextlib.closing(trackers),
        asked_to_stop(lambda: asked.append("stopped on request")),
    ):
        if not enough():
            train(engine, batches, state, schedule(run, len(batches)), after_update)
    early = stop and state.update < len(batches)
    return f"{stop[0]} after update {state.update}; start again to go on" if early else ""


def answered(
    engine: Any, some: rows.Rows, meta: dict, run: Run, folder: Folder, update: int
) -> None:
    """What the model says to a few questions now, into `samples.jsonl`."""
    answers = evaluate.generate(
        engine,
        some,
        engine.tokenizer,
        meta["stop_ids"],
        run.max_new_tokens,
        opening=meta["opening"],
    )
    for prompt, answer in zip(some.column("prompt"), answers, strict=True):
        if answer is not None:
            folder.append({"update": update, "prompt": prompt, "answer": answer}, "samples.jsonl")


@contextlib.contextmanager
def asked_to_stop(note: Callable[[], None]):
    """An interrupt or a termination ends the update in progress, not the run's files. A second one ends at once.

    Terminations in quick succession are one: the launcher and the system (Slurm, say) both pass it on.
    """
    kinds, before, asked = (signal.SIGINT, signal.SIGTERM), {}, []

    def handle(number: int, frame: Any) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            note()
        elif number == signal.SIGINT or asked[-1] - asked[0] > 5:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for kind in kinds:
            before[kind] = signal.signal(kind, handle)
    except ValueError:  # not the main thread: nobody sends it signals
        pass
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def scored(
    engine: Any,
    sets: dict,
    meta: dict,
    run: Run,
    tokenizer: Any,
    path: Path,
    when: str,
    crew: Crew = ALONE,
    *,
    anew: bool = False,
) -> Outcome | None:
    """What the model does on the test rows; kept on disk, so a run that goes on does not ask the base again."""
    if "test" not in sets:
        return None
    if not anew and (known := crew.told(lambda: Outcome.read(path) if path.exists() else None)):
        return known
    outcome = predict(
        engine,
        sets["test"],
        meta,
        tokenizer,
        max_tokens=run.micro_batch_tokens,
        max_new_tokens=run.max_new_tokens,
        when=when,
        visible=crew.first,
    )
    if crew.first:
        outcome.write(path)
    return outcome
