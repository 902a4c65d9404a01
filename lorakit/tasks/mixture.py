"""Several files in given shares of the training: rows repeat until each file has its share of the target tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorakit.tasks.rows import Rows


def mixed(rows: Rows, weights: Mapping[str, float], seed: int) -> tuple[Rows, list[str]]:
    """(training rows in which every file has its share, a note for each file). No row is left out.

    The file that has the most tokens for its weight is taken once; rows of the others repeat, chosen by seed where not
    all of them repeat once more.
    """
    sizes, owners = targets(rows), np.asarray(rows.column("source"))
    held = {name: float(sizes[owners == name].sum()) for name in weights}
    wanted = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    least = min(wanted[name] / held[name] for name in weights)
    chosen, notes = [], []
    for number, name in enumerate(weights):
        times = wanted[name] / held[name] / least
        mine = np.flatnonzero(owners == name)
        order = np.random.default_rng((seed, 5, number)).permutation(mine)
        reached = np.cumsum(sizes[order]) - sizes[order] / 2  # the half of a row decides
        rest = order[reached < (times - int(times)) * held[name]]
        chosen += [*[mine] * int(times), rest]
        notes.append(
            f"{name}: {wanted[name]:.0%} of the target tokens, each row {times:.3g} times an epoch"
        )
    return rows.chosen(np.concatenate(chosen)), notes


def targets(rows: Rows) -> np.ndarray:
    """(n,) target tokens of each row; 1 where a row is a class."""
    if "targets" not in rows.dataset.column_names:
        return np.ones(len(rows))
    return np.array([np.sum(marks) for marks in rows.column("targets")], dtype=np.float64)
