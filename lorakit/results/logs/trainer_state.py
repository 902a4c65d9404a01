"""Hugging Face's Trainer: `trainer_state.json`, which stands in every checkpoint and beside a finished model.

{"log_history": [{"step": 500, "epoch": 1.25, "loss": 2.31, "learning_rate": 4.8e-05, "grad_norm": 3.1},
                 {"step": 500, "epoch": 1.25, "eval_loss": 2.40, "eval_runtime": 5.7}, …], "global_step": 12030, …}
https://huggingface.co/docs/transformers/main_classes/callback#transformers.TrainerState
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import require_keys
from lorakit.results.logs import Log, name_of, translated

WHAT = "Hugging Face's trainer_state.json (or a folder with checkpoints that hold one)"


def claims(path: Path) -> bool:
    return bool(_file(path))


def _file(path: Path) -> Path | None:
    """The state itself; of a folder its own one, or that of the latest checkpoint."""
    if path.is_file():
        return path if path.suffix == ".json" else None
    inside = sorted(
        path.glob("checkpoint-*/trainer_state.json"),
        key=lambda p: int(re.sub(r"\D", "", p.parent.name) or 0),
    )
    own = path / "trainer_state.json"
    return own if own.is_file() else inside[-1] if inside else None


def read(path: Path) -> Log:
    file = _file(path) or path
    try:
        state = require_keys(json.loads(file.read_text(encoding="utf-8")), "log_history")
        history = [require_keys(entry, "step") for entry in state["log_history"]]
        return log_of(state, history, name_of(file.parent, ("checkpoint-",)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LorakitError(
            f"{file}: is no state of Hugging Face's Trainer, or is damaged ({error})"
        ) from None


def log_of(state: dict[str, Any], history: list[dict[str, Any]], name: str) -> Log:
    updates: list[dict] = []
    validations: dict[str, list] = {}
    for entry in history:
        if "loss" in entry:
            seen = (
                {"tokens": float(entry["num_input_tokens_seen"])}
                if entry.get("num_input_tokens_seen")
                else {}
            )
            updates.append({"update": entry["step"], "loss": float(entry["loss"]), **seen})
        for key, value in entry.items():
            if found := re.fullmatch(r"eval_(?:(.+)_)?loss", key):
                validations.setdefault(found[1] or "validation", []).append(
                    (entry["step"], float(value))
                )
    notes = []
    if any("tokens" in u for u in updates):
        notes.append("its tokens are those of the input, not of the targets")
    settings = {k: v for k, v in state.items() if k not in ("max_steps", "num_train_epochs")} | {
        "num_train_epochs": state.get("num_train_epochs"),
        "max_steps": state.get("max_steps"),
        "per_device_train_batch_size": state.get("train_batch_size"),
    }
    return Log(name, "trainer_state", updates, validations, translated(settings), notes)
