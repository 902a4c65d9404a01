"""What a base says on a run's test rows, computed once for the base, the rows and the settings that it depends on.

A control, and a run with another learning rate or more updates, ask the same base the same rows: they read the answers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from lorakit.common import files
from lorakit.common.errors import LorakitError
from lorakit.planning.setup import Setup
from lorakit.results.evaluate import Outcome
from lorakit.runs.folder import versions
from lorakit.training.session import Session

# Settings that change nothing before the first update. `seed` does: it draws a classifier's new head.
OF_TRAINING = {
    "name",
    "output_dir",
    "data",
    "replay",
    "validation_data",
    "test_data",
    "shuffle_answers",
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "epochs",
    "max_updates",
    "max_rows",
    "max_minutes",
    "validate_every",
    "early_stopping",
    "checkpoint_every",
    "global_batch_size",
    "samples",
    "general_questions",
    "log_to",
}
NAME = "outcome.json"


def key(plan: Setup, session: Session, generate: bool) -> str | None:
    """SHA-256 of all that the base's outcome follows from; None where the content of the base is not known."""
    test = session.folder.rows / "test"
    if not plan.base.hash or not test.is_dir():
        return None
    parts = [
        plan.base.hash,
        plan.base.reader_hash,
        [files.file_hash(file) for file in sorted(test.glob("*.arrow"))],
        session.meta,
        session.run.model_dump(exclude=OF_TRAINING),
        [versions(), plan.facts.device, [card.name for card in plan.facts.cards]],
        [session.world.size, generate],
    ]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:32]


def read(key: str | None) -> Outcome | None:
    """The outcome that an earlier run left, if one did and it can be read."""
    path = files.cache() / f"before-{key}" / NAME
    try:
        return Outcome.read(path) if key and path.exists() else None
    except LorakitError:
        return None


def keep(key: str | None, written: Path) -> None:
    """Keeps the outcome in the file `written` for later runs."""

    def copy(folder: Path) -> None:
        shutil.copyfile(written, folder / NAME)

    if key:
        files.cached(f"before-{key}", copy)
