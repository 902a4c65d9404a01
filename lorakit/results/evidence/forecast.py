"""How many more rows? A learning curve from runs on parts of the training rows, and what it forecasts.

The error E (distance to a perfect score) after n training rows is taken to follow one of two families, with floor c:

    power law    E(n) = c + (E1 - c) (n / n1)^-b           (Hestness et al., arXiv 1712.00409)
    exponential  E(n) = c + (E1 - c) exp(-(n - n1) / t)    (both: Viering & Loog, arXiv 2103.10948)

Few points decide neither family nor parameters, so that all are averaged: parameters are drawn from broad priors
(b ~ exponential of mean 0.5; t from a tenth to ten times the rows; c = 0 or uniform below E1; each family as likely)
and weighted by the likelihood of the measured errors, log E_k ~ Normal(log E(n_k), s_k^2 + u^2). s_k is the bootstrap
error over test rows, u ~ |Normal(0, 0.15)| what another seed or another choice of rows would change. Intervals are
weighted quantiles (80 %). Assumptions: the next rows are of the same kind, the settings stay, and the error does not
rise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorakit.results import evaluate
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import Evidence
from lorakit.results.plots import bare, written
from lorakit.results.verdict import BEST, POINTS, named, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette

QUESTION = "How many more rows?"
DRAWS, RESAMPLES = 40_000, 400
NOISE = 0.15  # of log E, between runs
LEVEL = 0.8
FEWEST_TESTED, FEWEST_TRAINED, FEWEST_RUNS = 30, 20, 3


@dataclass(frozen=True)
class Curve:
    """Weighted draws of learning curves; `n1` is the fewest rows that were trained on."""

    n1: float
    first: np.ndarray  # (D,) E1
    floor: np.ndarray  # (D,) c
    steepness: np.ndarray  # (D,) b, or 1 / t of the exponentials
    power: np.ndarray  # (D,) bool, which family
    noise: np.ndarray  # (D,) u
    weights: np.ndarray  # (D,), they sum to 1

    def error(self, rows: float) -> np.ndarray:
        """(D,) E(rows)."""
        fallen = np.where(
            self.power,
            (rows / self.n1) ** -self.steepness,
            np.exp(-(rows - self.n1) * self.steepness),
        )
        return self.floor + (self.first - self.floor) * fallen

    def interval(self, values: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
        """(median, low, high) of values (D,)."""
        order = np.argsort(values)
        total = np.cumsum(self.weights[order])
        places = np.searchsorted(total, [0.5, (1 - level) / 2, (1 + level) / 2])
        median, low, high = values[order][np.minimum(places, len(values) - 1)]
        return float(median), float(low), float(high)

    def observed(self, rows: float, spread: float) -> tuple[float, float, float]:
        """(median, low, high) of the error that a run on so many rows would measure; `spread`: s of log E."""
        noise = np.random.default_rng(1).standard_normal(len(self.first))
        return self.interval(self.error(rows) * np.exp(noise * np.hypot(spread, self.noise)))


def fit(
    rows: Sequence[float], errors: Sequence[float], spreads: Sequence[float], seed: int = 0
) -> Curve:
    """The curves that agree with measured errors (K,) and their errors of log E (K,), by training rows (K,)."""
    n, logs = np.asarray(rows, dtype=float), np.log(np.asarray(errors, dtype=float))
    s, rng = np.asarray(spreads, dtype=float), np.random.default_rng(seed)
    first = np.exp(logs[0] + rng.normal(0, np.hypot(s[0], NOISE), DRAWS))
    floor = first * np.where(rng.random(DRAWS) < 0.5, 0.0, rng.random(DRAWS))
    power = rng.random(DRAWS) < 0.5
    steepness = np.where(
        power,
        rng.exponential(0.5, DRAWS),
        1 / (n.max() * np.exp(rng.uniform(np.log(0.1), np.log(10), DRAWS))),
    )
    noise = np.abs(rng.normal(0, NOISE, DRAWS))
    drawn = Curve(n[0], first, floor, steepness, power, noise, np.full(DRAWS, 1 / DRAWS))
    likelihood = np.zeros(DRAWS)
    for rows_k, log_k, s_k in zip(
        n[1:], logs[1:], s[1:], strict=True
    ):  # the first one is in the prior
        width = np.hypot(s_k, noise)
        likelihood -= 0.5 * ((log_k - np.log(drawn.error(rows_k))) / width) ** 2 + np.log(width)
    weights = np.exp(likelihood - likelihood.max())
    return Curve(n[0], first, floor, steepness, power, noise, weights / weights.sum())


def measured(
    metric: str, options: dict, outcomes: Sequence[Outcome], references: Sequence[str | None]
) -> tuple[list[float], list[float], float, bool]:
    """(errors, bootstrap errors of their logarithms, the perfect score, whether higher is better) of several runs."""
    from lorakit.common import registry

    module = registry.load("metrics", metric)
    stats = [evaluate.statistics(metric, options, o, references) for o in outcomes]
    higher = module.HIGHER_IS_BETTER
    best = BEST.get(metric, 1.0) if higher else 0.0
    tested = len(stats[0])
    least = (
        0.5 * abs(BEST.get(metric, 1.0) or 1.0) / max(tested, 1)
    )  # half a row: log 0 is undefined
    rng = np.random.default_rng(0)
    picks = rng.integers(tested, size=(RESAMPLES, tested))
    errors, spreads = [], []
    for rows in stats:
        drawn = [max(abs(best - module.score(rows[pick])), least) for pick in picks]
        error = max(abs(best - module.score(rows)), least)
        errors.append(error)
        spreads.append(max(float(np.std(np.log(drawn))), least / error))
    return errors, spreads, best, higher


def said(
    metric: str,
    rows: Sequence[int],
    errors: Sequence[float],
    spreads: Sequence[float],
    best: float,
    tested: int,
    **more: Any,
) -> Evidence:
    """What the curve forecasts, for people."""
    scores = [best - e if best else e for e in errors]
    ends = [sorted(best - e if best else e for e in _ends(*pair)) for pair in zip(errors, spreads)]
    table = [["training rows", named(metric), "95 % interval"]]
    table += [
        [str(n), short(v), f"{short(low)} to {short(high)}"]
        for n, v, (low, high) in zip(rows, scores, ends, strict=True)
    ]
    lacking = _lacking(rows, tested)
    if lacking:
        return Evidence("forecast", lacking, False, (), LIMITS, table, **more)
    curve, now = fit(rows, errors, spreads), rows[-1]
    factor, unit = (POINTS[metric], " points") if metric in POINTS else (1, "")

    def gained(extra: int) -> tuple[float, float, float]:
        return curve.interval(factor * (curve.error(now) - curve.error(now + extra)))

    steps = [max(1, now // 2), 3 * now]
    sentences = [
        f"{extra:,} more rows ({now + extra:,} in all): {short(middle)}{unit} better "
        f"(80 % interval {short(low)} to {short(high)})."
        for extra in steps
        for middle, low, high in [gained(extra)]
    ]
    middle, low, high = gained(now)
    seen = factor * 2 * spreads[-1] * errors[-1]  # what the test rows could show
    gain = f"{short(middle)}{unit} better (80 % interval {short(low)} to {short(high)}{unit})"
    headline = f"{now:,} more rows like these would bring: {named(metric)} {gain}."
    if high < max(seen, 0.01 * factor):
        headline = (
            f"More rows of this kind will not help visibly: {now:,} more, {named(metric)} {gain}."
        )
    return Evidence("forecast", headline, True, sentences, LIMITS, table, **more)


def _ends(error: float, spread: float) -> tuple[float, float]:
    """95 % interval of a measured error whose logarithm errs by `spread`."""
    wide = float(np.exp(1.96 * spread))
    return error / wide, error * wide


LIMITS = (
    "It cannot tell about rows of another kind, other settings or a larger model, and the further ahead, the less. "
    "One run per size was made: another seed moves each point.",
)


def _lacking(rows: Sequence[int], tested: int) -> str:
    """Why nothing can be forecast, and what it would take; "" where it can."""
    if len(rows) < FEWEST_RUNS:
        return f"Cannot tell: {len(rows)} runs are too few for a curve; at least {FEWEST_RUNS} are needed."
    if tested < FEWEST_TESTED:
        return f"Cannot tell: {tested} test rows are too few; at least {FEWEST_TESTED} are needed, better 100."
    if rows[0] < FEWEST_TRAINED:
        needed = -(-FEWEST_TRAINED * rows[-1] // rows[0])
        return (
            f"Cannot tell: the smallest run has {rows[0]} training rows, at least {FEWEST_TRAINED} are needed: "
            f"{needed} in all."
        )
    return ""


def draw(figures: Mapping[str, Any], colours: Palette) -> Figure:
    """The measured scores over the training rows, and the forecast with its interval."""
    from matplotlib.figure import Figure

    rows, errors, best = figures["rows"], np.asarray(figures["errors"]), figures["best"]
    spreads = np.asarray(figures["spreads"])

    def score(error: Any) -> Any:
        return best - error if best else error

    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axes = figure.subplots()
    if len(rows) > 1:
        curve = fit(rows, errors.tolist(), spreads.tolist())
        places = np.geomspace(rows[0], 4 * rows[-1], 40)
        middle, low, high = np.array([curve.interval(curve.error(n)) for n in places]).T
        axes.plot(places, score(middle), color=colours.training, label="forecast, 80 % interval")
        axes.fill_between(
            places, score(low), score(high), color=colours.training, alpha=0.18, linewidth=0
        )
        axes.axvline(rows[-1], color=colours.quiet, linewidth=0.8, linestyle=":")
    ends = [score(np.array(end)) for end in zip(*map(_ends, errors, spreads), strict=True)]
    axes.vlines(rows, *ends, color=colours.ink, linewidth=1)
    axes.plot(rows, score(errors), "o", color=colours.ink, label="measured, 95 % interval")
    axes.set(xlabel="training rows", ylabel=written(named(figures["metric"])), xscale="log")
    axes.set_xticks([*rows, 4 * rows[-1]], [str(n) for n in (*rows, 4 * rows[-1])])
    axes.minorticks_off()
    axes.legend(frameon=False)
    bare(axes)
    return figure
