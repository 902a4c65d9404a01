"""The folder of a run of lorakit: `history.jsonl`, a line per update and a line per validation."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from lorakit.results.logs import Log
from lorakit.runs.folder import Folder

WHAT = "a run of lorakit (a folder with record.json)"


def claims(path: Path) -> bool:
    return (path / "record.json").is_file()


def read(path: Path) -> Log:
    folder = Folder.of(path)
    updates, validations = folder.history()
    tokens = accumulate(u.get("target_tokens", 0) for u in updates)
    seconds = accumulate(u.get("seconds", 0.0) for u in updates)
    lines = [
        {"update": u["update"], "loss": u["loss"], "tokens": t, "seconds": s}
        for u, t, s in zip(updates, tokens, seconds, strict=True)
    ]
    series = [(v["update"], v["validation_loss"]) for v in validations]
    return Log(
        path.resolve().name,
        "own",
        lines,
        {"validation": series} if series else {},
        settings=folder.record.get("settings", {}),
    )
