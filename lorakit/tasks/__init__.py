"""Examples -> encoded rows -> batches. What a row trains, one task each, found by its name.

To add one, write a file with what `Task` in `protocol.py` requires.

A row of an objective with a language model's head holds `ids` (T,) and `targets` (T,), true where the token is trained.
A row with an answer to generate also holds `answer_start`, `prompt` and `reference`; `weights` (T,)
where tokens count otherwise than once, and `lost`, keys of `quality.LOST`, where the chat template did not write all
that the row says. A row of a classifier holds `ids`
and, in `reference`, the name of its class. With a medium a row holds `media`, the bytes of each, and where `ids` do not
tell, in `length`, how many positions the model computes for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.tasks import objectives, tools
from lorakit.tasks.protocol import Objective
from lorakit.tasks.protocol import Task as INTERFACE

if TYPE_CHECKING:
    from lorakit.run import Run

# Modules of this package that are not tasks.
HELPERS = (
    "batches", "calls", "dataset", "joined", "mixture", "objectives", "pairs", "preview", "protocol", "rows",
    "template", "tools",
)  # fmt: skip


def get(name: str) -> INTERFACE:
    """The task of this name. Raises `LorakitError` listing those present."""
    return cast(INTERFACE, registry.load("tasks", name))


def objective_of(task: str) -> Objective:
    """What a task's rows teach; next-token prediction while the task is not known."""
    return objectives.get("next_token" if task == "auto" else get(task).OBJECTIVE)


def objective_for(run: Run) -> tuple[Objective, dict[str, float]]:
    """(what a run teaches, its options). Raises `LorakitError` for one that its rows do not fit, or unknown options."""
    if run.objective == "auto":
        objective = objective_of(run.task)
        return objective, dict(objective.OPTIONS)
    named = run.objective if isinstance(run.objective, dict) else {run.objective: {}}
    if len(named) != 1:
        raise LorakitError(
            f"objective={run.objective!r} is not one objective with options",
            setting="objective",
            value=run.objective,
            cure="write e.g. objective: {dpo: {beta: 0.1}}",
        )
    ((name, options),) = named.items()
    objective = objectives.get(name)
    if unknown := sorted(options.keys() - objective.OPTIONS.keys()):
        known = ", ".join(objective.OPTIONS) or "none"
        raise LorakitError(
            f"objective={name!r} has no option {unknown[0]!r}",
            setting="objective",
            value=run.objective,
            cure=f"its options are: {known}",
        )
    if run.task != "auto" and (
        lost := [c for c in objective.COLUMNS if c not in get(run.task).COLUMNS]
    ):
        raise LorakitError(
            f"objective={name!r} needs rows with {lost[0]!r}, which task={run.task!r} does not give",
            setting="objective",
            value=run.objective,
            cure="leave objective out, or name data with a chosen and a rejected answer",
        )
    return objective, {**objective.OPTIONS, **options}


def metrics_of(meta: Mapping[str, Any]) -> Sequence[str]:
    """What rows of a task are scored by; `meta`: what was noted when they were encoded."""
    return (*get(meta["task"]).METRICS, *(tools.METRICS if meta.get("tools") else ()))


def settings_of(task: Any, run: Run) -> dict[str, Any]:
    """The settings of a run that a task's `encode` takes."""
    return {name: getattr(run, name) for name in task.SETTINGS}


def guard_classes(rows: Iterable[dict], tokenizer: Any) -> None:
    """Refuses rows of one class, where there is nothing to tell apart, and rows that hardly share one."""
    names = [row["reference"] for row in rows]
    found = set(names)
    if len(found) > max(2, len(names) / 2):
        raise LorakitError(
            f"{len(found)} classes in {len(names)} training rows, e.g. {min(found)[:60]!r}: these are "
            "none; name the column that holds them, e.g. columns: {label: kind}"
        )
    if len(found) < 2:
        raise LorakitError(
            f"every training row is of the class {next(iter(found), None)!r}: there is nothing to tell "
            "apart"
        )


def none(rows: Iterable[dict], tokenizer: Any) -> list[int]:
    """No token ends what is no text."""
    return []
