"""A finished run in another format, proven by a round trip through the library that reads it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, sweep
from lorakit.exporting import fresh_process, judge, measure, model_card, target
from lorakit.exporting.fresh_process import Job
from lorakit.exporting.measure import Compared, Said
from lorakit.exporting.messages import RECORD, read, table, words
from lorakit.exporting.proof import Proof, proof_of
from lorakit.exporting.reference import PLAIN, recorded_loss, reference
from lorakit.exporting.source import Source, source
from lorakit.exporting.target import ExportTarget, bounds
from lorakit.machine.packages import require
from lorakit.models import identity
from lorakit.runs import folder as record

__all__ = ["Source", "export", "read", "source", "table", "words"]


class Steps:
    """Progress on the terminal: the step, and how far it is."""

    def __init__(self, what: str):
        self._bar = tqdm(
            total=1, desc=what, bar_format="{desc} [{elapsed}]{postfix}", mininterval=0.5
        )
        self._what = what

    def __call__(self, step: str, done: int = 0, of: int = 0) -> None:
        share = f" {done}/{of}" if of else ""
        self._bar.set_description_str(f"{self._what}: {step}{share}", refresh=not done)
        self._bar.update(0)

    def close(self) -> None:
        self._bar.close()


def export(
    path: str | os.PathLike, target_name: str, out: str | os.PathLike | None = None, **options: Any
) -> Path:
    """Writes a finished run in another format, proves it in a fresh process, and returns the folder.

    Args:
        path: the run's folder.
        target_name: a file of `exporting/targets/`.
        out: the folder to write; by default `export/TARGET-TYPE` in the run's folder.
        options: `type`, a precision of the target's; `also`, runs whose adapters go along; `model`, where the base
            lies now; `proof_seconds`, how long each model is asked at most.

    Raises:
        LorakitError: the run is not done, the target cannot hold it, or what was written is another model. Nothing
            is left under `out` then.
    """
    wanted = target.named(target_name)
    require(*wanted.packages, purpose=f"export to {target_name}")
    opened = source(path, **options)
    type_ = _typed(wanted, target_name, options.get("type"))
    refuse_task(wanted, target_name, opened)
    folder = Path(out) if out else opened.folder / "export" / f"{target_name}-{type_}"
    refuse(folder, wanted, opened, type_)
    steps = Steps(f"{target_name} {type_}")
    try:
        with atomic_write(folder, "name another place with --out") as part:
            part.mkdir()
            content = _written(wanted, target_name, type_, opened, part, steps)
            model_card.write(opened.folder.path, part / "README.md", content)
            record.write_json(part / RECORD, content)
    finally:
        steps.close()
    return folder


def _typed(wanted: ExportTarget, name: str, type_: str | None) -> str:
    try:
        return wanted.type_named(type_)
    except LorakitError as error:
        error.where = f"--type {type_} of {name}"
        raise


def _written(
    wanted: ExportTarget, name: str, type_: str, opened: Source, part: Path, steps: Steps
) -> dict[str, Any]:
    """Fills `part` and returns what the record of the export says."""
    seconds = float(opened.options.get("proof_seconds") or wanted.proof_seconds)
    opened.options["proof_seconds"] = seconds
    limit = f"at most about {seconds:.0f} s for each model"
    proof = None
    job = Job(name, type_, str(part), str(opened.folder.path), options=opened.options)
    if not wanted.copies:
        steps(f"asking the tuned model ({limit})")
        proof = proof_of(opened)
        form = wanted.trained_for.get(type_, PLAIN)
        form = form if form == opened.run.fake_quantization else PLAIN
        found = reference(opened, proof, form, steps)
        job = Job(name, type_, str(part), job.run, str(found.folder), opened.options)
    steps("writing")
    notes = [*opened.opened.notes, *wanted.write(opened, part, type_)]
    steps(f"asking what was written, in a fresh process ({limit})")
    tuned, exported = ask_written(job, proof, steps)
    more, trained = training_notes(opened, tuned)
    notes += more
    limits = judge.within_precision(tuned.precision, bounds(wanted, type_, opened))
    shown = judge.judge(tuned, exported, limits, f"{name} {type_}")
    shown["perplexity"]["trained"] = measure.perplexity(trained)
    return {
        "target": name,
        "type": type_,
        "run": str(opened.folder.path),
        "run_files": opened.folder.record.get("files"),
        "base": opened.run.model,
        "base_sha256": opened.folder.record.get("base_sha256"),
        "bytes": wanted.size(part),
        "files": {
            file: {"bytes": (part / file).stat().st_size, "sha256": digest}
            for file, digest in identity.files(part, [p.name for p in part.iterdir()]).items()
        },
        **shown,
        "notes": notes,
        "versions": record.versions(),
    }


def ask_written(job: Job, proof: Proof | None, steps: Steps) -> tuple[Said, Compared]:
    """(what the tuned model says, what was written says), asked in a fresh process."""
    return fresh_process.ask_in_fresh_process(job, proof, steps)


def training_notes(opened: Source, tuned: Said) -> tuple[list[str], float]:
    """(how the model that is exported differs from the one that was trained, nats a token of the latter)."""
    run, now = opened.run, tuned.loss()
    if (
        tuned.precision == run.precision == "fp32"
        and run.quantization == run.fake_quantization == "none"
    ):
        return [], now
    recorded = None if opened.classes else recorded_loss(opened)
    comparable = recorded is not None and sum(tuned.own) == len(opened.own_rows)
    losses = (
        f"; the loss on the test rows was {recorded:.4f} and is {now:.4f} nats a token"
        if comparable
        else ""
    )
    trained = recorded if recorded is not None and comparable else now
    if tuned.precision not in ("fp32", "bf16", "fp16"):
        note = (
            f"there is no room for the base's unquantized weights: compared with the model in "
            f"{run.quantization}, and what merging changes is not measured"
        )
    elif run.fake_quantization != "none":
        note = f"tuned with its weights as {run.fake_quantization} holds them{losses}"
    elif run.quantization != "none":
        note = f"tuned on a base in {run.quantization}, merged into its unquantized weights{losses}"
    else:
        note = f"tuned in {run.precision}, compared in {tuned.precision}{losses}"
    return [note], trained


def refuse_task(wanted: ExportTarget, name: str, opened: Source) -> None:
    """Raises `LorakitError` for a classifier where the target takes none."""
    if opened.classes and not wanted.classifiers:
        takes = ", ".join(
            n for n, module in registry.modules("export").items() if module.TARGET.classifiers
        )
        raise LorakitError(
            f"task={opened.meta['task']}: only models that read and write text alone can become {name}",
            setting="--to",
            value=name,
            where=opened.folder.path,
            cure=f"a classifier can be exported --to {takes}",
        )


def refuse(folder: Path, wanted: ExportTarget, opened: Source, type_: str) -> None:
    """Raises `LorakitError` where there is no room, or where something stands that is no export."""
    occupied = folder.exists() and not (folder / RECORD).is_file()
    if occupied and (not folder.is_dir() or any(folder.iterdir())):
        raise LorakitError(
            "is there already and holds no export",
            setting="--out",
            value=str(folder),
            where=folder,
            cure="name another place with --out",
        )
    if folder.parent.is_dir():
        sweep(folder.parent)
    weights = opened.folder.record["parameters"]
    disk, memory = wanted.room(weights, type_)
    place = next(p for p in (folder, *folder.resolve().parents) if p.is_dir())
    for need, there, what, cure in (
        (
            disk,
            shutil.disk_usage(place).free,
            "on the disk",
            "free some, name another place with --out",
        ),
        (memory, psutil.virtual_memory().available, "of memory", "close other programs"),
    ):
        if need > there:
            others = ", ".join(t for t in wanted.types if wanted.room(weights, t) < (disk, memory))
            raise LorakitError(
                f"{type_} of {weights / 1e9:.2f} billion weights needs {need / 1e9:.1f} GB {what} while "
                f"it is made, {there / 1e9:.1f} GB are free",
                where=folder,
                cure=cure + (f", or take --type {others}" if others else ""),
            )
