"""A finished run, loaded again and asked."""

from __future__ import annotations

import os
from typing import Any

from lorakit import base, evaluate, registry, rows
from lorakit.errors import LorakitError
from lorakit.record import Folder
from lorakit.run import Run


def tuned(path: str | os.PathLike, *, adapted: bool = True) -> tuple[Any, Any, dict, Run]:
    """(engine, tokenizer, meta, run) of a finished run; with `adapted=False` its base alone."""
    folder = Folder.of(path)
    run = Run.read(folder / "run.yaml")
    saved = folder / ("adapter" if run.method == "lora" else "model")
    if adapted and not saved.is_dir():
        raise LorakitError(f"{folder.path}: has nothing saved yet (status {folder.record['status']})")
    engine = registry.load("engines", run.engine).load(run, adapter=saved if adapted else None)
    _, meta = rows.read(folder / "rows")
    return engine, base.tokenizer(run.model)[0], meta, run


def ask(path: str | os.PathLike, questions: str | list[str], *, adapted: bool = True, max_new_tokens: int | None = None
        ) -> list[str]:
    """Greedy answers of a tuned model (or of its base) to questions, or continuations of plain text."""
    engine, tokenizer, meta, run = tuned(path, adapted=adapted)
    questions = [questions] if isinstance(questions, str) else questions
    prompts = [registry.load("tasks", meta["task"]).ask(q, tokenizer) for q in questions]
    answers = engine.generate(prompts, max_new_tokens or run.max_new_tokens, meta["stop_ids"])
    engine.close()
    return [evaluate.words(a, tokenizer, meta["opening"]) for a in answers]
