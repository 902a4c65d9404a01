"""What the tuned model says to a proof, kept in the cache for the next export of the same weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.common.files import cached
from lorakit.exporting import measure
from lorakit.exporting.measure import Progress, Said, silent
from lorakit.exporting.proof import TEXTS, Proof
from lorakit.exporting.source import Source
from lorakit.exporting.transformers_model import TransformersModel
from lorakit.models import identity
from lorakit.models.merge import with_adapter
from lorakit.results.evaluate import Outcome

VERSION = 2  # of what is kept: raise it when a proof or a measurement changes
PLAIN = "none"  # fake_quantization of a reference with unrounded weights
HEADROOM = 1.3  # times the bytes of the weights that must be free


@dataclass(frozen=True)
class Reference:
    """The tuned model's sayings and the folder that holds its distributions."""

    said: Said
    folder: Path


def reference(
    source: Source, proof: Proof, form: str = PLAIN, progress: Progress = silent
) -> Reference:
    """The tuned model in fp32 on unquantized weights, asked once.

    Args:
        form: a `fake_quantization`: with weights rounded so, as a run that was trained for them scores itself.
    """

    def build(folder: Path) -> None:
        model = tuned_model(source, form)
        said = measure.ask_reference(model, proof, folder, progress)
        said.precision = model.precision
        measure.write(said, folder / "said.json")

    folder = cached(f"reference-{_key(source, proof, form)}", build)
    try:
        return Reference(measure.read(folder / "said.json"), folder)
    except (OSError, ValueError, TypeError) as error:
        raise LorakitError(
            f"is damaged ({error})", where=folder, cure="delete it; the next export makes it anew"
        ) from None


def _key(source: Source, proof: Proof, form: str) -> str:
    weights = sorted(identity.files(source.saved.parent, (source.saved.name,)).items())
    parts = [
        VERSION,
        weights,
        identity.base(source.run.model) if source.run.method == "lora" else None,
        identity.file_sha256(TEXTS),
        [row.ids for row in proof.rows],
        proof.prompts,
        proof.max_new_tokens,
        proof.seconds,
        form,
        _precision(source) or source.run.quantization,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def tuned_model(source: Source, form: str = PLAIN) -> TransformersModel:
    """The tuned model as plain transformers and PEFT compute it, in the widest precision that there is room for."""
    run = source.run
    if form == PLAIN and (precision := _precision(source)) is not None:
        model = source.model(precision)
        if run.method == "lora":
            model = with_adapter(model, source.saved, run.model)
        return TransformersModel(model, precision if precision == "fp32" else run.precision)
    changes: dict[str, Any] = {"fake_quantization": form}
    if form != PLAIN:
        changes |= {"quantization": "none", "precision": "fp32"}
    engine = registry.load("engines", run.engine).load(
        run.with_(**changes), adapter=source.saved, classes=source.classes
    )
    return TransformersModel(engine.model, "fp32" if form != PLAIN else run.quantization)


def _precision(source: Source) -> str | None:
    """`fp32` where its weights fit the memory, `stored` where only those fit; None where neither do."""
    free = psutil.virtual_memory().available / HEADROOM
    weights = source.folder.record["parameters"]
    if 4 * weights < free:
        return "fp32"
    return "stored" if 2 * weights < free or source.run.quantization == "none" else None


def recorded_loss(source: Source) -> float | None:
    """Nats a target token that the run itself measured on the test rows that are the proof's own; None without."""
    path, test = source.folder.outcome("after"), source.opened.rows("test")
    own = source.own_rows
    if (
        not path.is_file()
        or test is None
        or own.column("file") != test.first(len(own)).column("file")
    ):
        return None
    outcome = Outcome.read(path)
    # Of a pair an export is asked for the chosen answer: its nats and tokens.
    sums = outcome.tokens if outcome.pairs is None else outcome.pairs[:, 2:]
    sums = np.asarray(sums)[: len(own)]
    return float(sums[:, 0].sum() / max(1.0, sums[:, 1].sum()))
