"""What raising `max_updates` of a run that was trained already does to its learning rate."""

from __future__ import annotations

from collections.abc import Callable

from lorakit.common.choice import Choice


def extension(
    schedule: str,
    trained: int,
    planned: int | None,
    updates: int,
    rate_of: Callable[[int], Callable[[int], float]],
) -> Choice | None:
    """The new number of updates with what happens at the seam; None where the curve goes on as it was planned.

    Args:
        schedule: the setting of the run.
        trained: updates that are done.
        planned: updates that the run was planned for when they were; None for a new run.
        updates: updates that it is planned for now.
        rate_of: number of updates -> learning rate of each update, from 0.
    """
    if not trained or planned is None or planned == updates:
        return None
    last, following = rate_of(planned)(trained - 1), rate_of(updates)(min(trained, updates - 1))
    change = (
        "the learning rate is constant, so the curve goes on"
        if schedule == "constant"
        else f"the {schedule} schedule is stretched over all {updates} updates: the learning rate was {last:.3g} in "
        f"update {trained} and is {following:.3g} in the next one, which one run of {updates} updates would not show"
    )
    return Choice(updates, f"was {planned} when the first {trained} were trained; {change}")
