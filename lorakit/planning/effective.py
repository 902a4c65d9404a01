"""Settings that cannot take effect, found once rows, task and every `auto` are known."""

from __future__ import annotations

from collections.abc import Collection

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.run import Run, resolved

OF_TASKS = ("question", "language", "reasoning")  # what only some tasks look at


def refuse_ineffective(run: Run, updates: int, sets: Collection[str]) -> None:
    """Raises `LorakitError` for a setting that this run would ignore.

    Args:
        run: the resolved settings.
        updates: of the whole run.
        sets: names of the sets that have rows.
    """
    _early_stopping(run, updates, sets)
    task = tasks.get(run.task)
    if run.samples and ("validation" not in sets or not run.validate_every):
        raise _ignored(run, "samples", "no validation question is there to be answered")
    if run.samples and tasks.objective_of(run.task).HEAD == "labels":
        raise _ignored(run, "samples", f"task={run.task} writes no answers")
    if run.general_questions not in ("auto", 0) and run.task != "chat":
        raise _ignored(run, "general_questions", f"task={run.task} answers none")
    if run.chat_template and "reasoning" not in task.SETTINGS:
        raise _ignored(run, "chat_template", f"task={run.task} uses no chat template")
    for name in OF_TASKS:
        default = Run.model_fields[name].default
        if getattr(run, name) != default and name not in task.SETTINGS:
            raise _ignored(run, name, f"task={run.task} does not look at it")


def _early_stopping(run: Run, updates: int, sets: Collection[str]) -> None:
    """The first loss is always the lowest, so training ends at validation `early_stopping` + 1 at the earliest."""
    patience = run.early_stopping
    if patience is None:
        return
    if "validation" not in sets:
        raise _ignored(run, "early_stopping", "there are no validation rows")
    every = resolved(run.validate_every)
    if (patience + 1) * every < updates:
        return
    validations = -(-updates // every)
    most = (updates - 1) // every - 1
    cure = f"at most {most} can act here" if most > 0 else "leave it out"
    raise LorakitError(
        f"early_stopping={patience} would have no effect: there are {validations} validations in {updates} "
        f"updates (validate_every={every})",
        setting="early_stopping",
        value=patience,
        cure=f"{cure}; or validate more often, or train longer",
    )


def _ignored(run: Run, name: str, why: str) -> LorakitError:
    return LorakitError(
        f"{name}={getattr(run, name)!r} would have no effect: {why}",
        setting=name,
        value=getattr(run, name),
        cure="leave it out",
    )
