"""Runs on parts of the training rows, for a learning curve: the same validation and test rows, encoded once."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.machine.distributed import ALONE
from lorakit.planning.setup import setup
from lorakit.results import evidence
from lorakit.results.compare import outcome
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import Evidence
from lorakit.results.evidence import forecast as curve
from lorakit.results.predict import predict
from lorakit.results.verdict import primary
from lorakit.run import Run, resolved
from lorakit.runs.folder import RunFolder, write_json
from lorakit.runs.status import Status
from lorakit.tasks.dataset import Prepared, prepare
from lorakit.tasks.rows import Rows
from lorakit.training import checkpoint
from lorakit.training.finetune import finetune
from lorakit.training.session import Session

SHARES = (0.25, 0.5, 0.75)


def forecast(run: Run, shares: tuple[float, ...] = SHARES) -> Evidence:
    """Trains the run, and again on these shares of its training rows; what is done already is read.

    The evidence is kept in the run's folder; the smaller runs lie in `forecast/` inside it, with their scores alone.

    Raises:
        LorakitError: the run is at fault, or was stopped before its end.
    """
    started = time.process_time()
    folder = RunFolder(run.folder)
    if folder.record["status"] != Status.DONE:
        folder = finetune(run)
    found, lines = outcome(folder)
    metric = primary(folder.scores)
    prepared = prepare(run)
    counts, outcomes = [], []
    for share in sorted(shares):
        part, some = RunFolder(folder.path / "forecast" / f"{share:.0%}"), prepared.rows["train"]
        some = some.chosen(first_of(some, share, run.seed))
        counts.append(len(some))
        outcomes.append(_trained(run, prepared, some, part))
    counts.append(len(prepared.rows["train"]))
    outcomes.append(found)
    references = [line["reference"] for line in lines]
    options = folder.record["metrics"].get(metric, {})
    errors, spreads, best, _ = curve.measured(metric, options, outcomes, references)
    figures = {
        "metric": metric,
        "rows": counts,
        "errors": errors,
        "spreads": spreads,
        "best": best,
        "cpu_seconds": time.process_time() - started,
    }
    more = {"figures": figures, "weights": evidence.weights(folder)}
    return evidence.keep(
        folder, curve.said(metric, counts, errors, spreads, best, len(lines), **more)
    )


def first_of(rows: Rows, share: float, seed: int) -> np.ndarray:
    """Indices of a share of the rows, whole sources in an order of the seed: a larger share holds the smaller ones."""
    names = np.asarray(rows.sources)
    order = np.random.default_rng(seed).permutation(np.unique(names))
    place = {name: i for i, name in enumerate(order)}
    ranked = np.argsort([place[name] for name in names], kind="stable")
    return np.sort(ranked[: max(1, round(share * len(rows)))])


def _trained(run: Run, prepared: Prepared, train: Rows, folder: RunFolder) -> Outcome:
    """What a model trained on these rows does on the test rows; read where it is known."""
    path, asked = folder.outcome("after"), {"settings": run.given(), "rows": len(train)}
    if path.exists() and folder.record.get("asked") == asked:
        return Outcome.read(path)
    sets = {**prepared.rows, "train": train}
    plan = setup(run, processes=1, prepared=replace(prepared, rows=sets))
    plan.refuse()
    with folder.locked():
        folder.clear()
        write_json(folder / "record.json", {"status": Status.RUNNING, "asked": asked})
        session = Session.load(plan, folder, ALONE, sets, prepared.meta)
        try:
            if session.train():
                raise LorakitError("was stopped before its end", where=folder.path)
            if folder.best_checkpoint.exists():
                session.engine.set_weights(checkpoint.read(folder.best_checkpoint)[0])
            found = predict(
                session.engine,
                sets["test"],
                prepared.meta,
                prepared.tokenizer,
                max_tokens=resolved(session.run.micro_batch_tokens),
                max_new_tokens=run.max_new_tokens,
                when=f"after {len(train)} rows",
            )
        finally:
            session.engine.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        found.write(path)
        folder.note(status=Status.DONE)
    return found
