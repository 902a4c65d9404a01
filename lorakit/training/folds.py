"""k-fold cross-validation: every row is a test row once, so that few rows prove as much as they can (Stone 1974).

Each fold is a run of its own under `folds/` of the run's folder. The scores are those of all folds pooled, row by row;
their spread stands beside them. The model that is kept is trained last, on all rows but those for validation: the
scores are an estimate for it, by models that saw a little less.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lorakit.results import evaluate
from lorakit.results.compare import outcome
from lorakit.results.evaluate import Outcome
from lorakit.run import Run
from lorakit.runs.folder import RunFolder, read_lines, write_json, write_lines


def each(run: Run, folder: RunFolder, train: Callable[[Run], RunFolder]) -> list[RunFolder]:
    """Trains every fold that is not done yet, one after the other."""
    out = []
    for number in range(1, (run.folds or 0) + 1):
        folder.note(stage=f"fold {number} of {run.folds}")
        out.append(
            train(
                run.with_(fold=number, name=f"fold-{number}", output_dir=str(folder.path / "folds"))
            )
        )
    folder.note(stage="all rows")
    return out


def write(folder: RunFolder, run: Run) -> None:
    """`scores.json` and `answers.jsonl` of a run, from those of its folds."""
    parts = [
        RunFolder(folder.path / "folds" / f"fold-{number}")
        for number in range(1, (run.folds or 0) + 1)
    ]
    after, rows = zip(*map(outcome, parts), strict=True)
    before = [Outcome.read(part.outcome("before")) for part in parts]
    chosen = parts[0].record["metrics"]
    references = [row["reference"] for some in rows for row in some]
    found = evaluate.scores(chosen, joined(before), joined(after), references, seed=run.seed)
    for name, entry in found.items():
        entry["folds"] = [
            {key: part.scores[name][key] for key in ("before", "after", "rows")} for part in parts
        ]
    write_json(folder / "scores.json", found)
    write_lines(
        folder.answers,
        [row for part in parts for row in read_lines(part.answers)],
    )
    folder.note(metrics=chosen)


def joined(outcomes: list[Outcome] | tuple[Outcome, ...]) -> Outcome:
    """Those of several sets of rows as one."""
    known = outcomes[0].probabilities is not None
    return Outcome(
        np.concatenate([o.tokens for o in outcomes]),
        [a for o in outcomes for a in o.answers],
        [s for o in outcomes for s in o.sources or ()] or None,
        np.concatenate([o.probabilities for o in outcomes]) if known else None,
        outcomes[0].classes,
    )
