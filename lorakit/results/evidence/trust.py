"""When should it ask a person? A threshold on how sure the model is of an answer, with a guaranteed rate of wrong ones.

An answer is given when its log-probability log p(answer | question), in nats and summed over its tokens and its end, is
above a threshold; else the question goes to a person. The threshold comes from validation rows by fixed-sequence
testing (Learn then Test: Angelopoulos et al., arXiv 2110.01052, §3; the risk is that of selective prediction: Geifman &
El-Yaniv, arXiv 1705.08500). With the rows ordered by confidence, H_j is "among questions whose confidence is above that
of row j + 1, more than `error` of the answers are wrong". The j rows above are independent draws of such questions, so
with k wrong ones among them p_j = P(Binomial(j, error) <= k) is a valid p-value for any n. H_j is tested in the order
j = m, m + 1, …, n with m = max(n / 2, log(1 - certainty) / log(1 - error)), until p_j > 1 - certainty; m does not
depend on the answers. Hence

    P(the rate of wrong answers among those given <= error) >= certainty

over the draw of the validation rows. Assumptions: validation rows and later questions are exchangeable, rows of one
source count once, and surer answers are not more often wrong (the order of a fixed sequence).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.results import evaluate, evidence
from lorakit.results.confidence import answered
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import Evidence, counted, percent, share
from lorakit.results.open_run import FinishedRun, open_run
from lorakit.results.plots import bare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette

QUESTION = "When should it ask a person?"
ERROR, CERTAINTY = 0.05, 0.9
MOST_ROWS = 100_000  # beyond that no number of rows is named


@dataclass(frozen=True)
class Threshold:
    """An answer is given when its log-probability is above `value`, in nats; `answered` rows of `rows` are."""

    value: float  # -inf: always; inf: never
    answered: int
    wrong: int  # among those
    rows: int


def promised(error: float, certainty: float) -> None:
    """Raises `LorakitError` for a rate or a certainty that is not between 0 and 1."""
    for name, value, example in (("error", error, 0.05), ("certainty", certainty, 0.9)):
        if not 0 < value < 1:
            raise LorakitError(
                f"{name} = {value} must lie between 0 and 1",
                setting=name,
                value=value,
                cure=f"write e.g. {example}",
            )


def rows_needed(error: float, certainty: float, rate: float = 0.0) -> int | None:
    """Rows from which so small a rate of wrong answers shows that it is at most `error`; None: more than can be had."""
    from scipy.stats import binom

    if rate >= error:
        return None
    first = math.ceil(math.log(1 - certainty) / math.log(1 - error))
    if not rate:
        return first
    rows = np.unique(np.geomspace(first, MOST_ROWS, 2000).astype(int))
    enough = binom.cdf(np.ceil(rate * rows), rows, error) <= 1 - certainty
    return int(rows[enough.argmax()]) if enough.any() else None


def threshold(
    confidence: np.ndarray, right: np.ndarray, error: float = ERROR, certainty: float = CERTAINTY
) -> Threshold:
    """The lowest threshold that keeps the promise, from `confidence` (n,) and `right` (n,) of validation rows.

    Raises `LorakitError` as `promised` does.
    """
    from scipy.stats import binom

    promised(error, certainty)
    n = len(confidence)
    order = np.argsort(-np.asarray(confidence), kind="stable")
    ordered = np.append(np.asarray(confidence, dtype=float)[order], -np.inf)
    wrong = np.cumsum(~np.asarray(right, dtype=bool)[order])
    found = Threshold(math.inf, 0, 0, n)
    first = max(rows_needed(error, certainty) or n + 1, -(-n // 2))
    counts = np.arange(first, n + 1)
    held = binom.cdf(wrong[first - 1 :], counts, error) <= 1 - certainty
    for j, holds in zip(counts.tolist(), held, strict=True):
        if ordered[j] == ordered[j - 1]:  # rows of equal confidence are answered together
            continue
        if not holds:
            break
        found = Threshold(float(ordered[j]), j, int(wrong[j - 1]), n)
    return found


def measure(
    path: str | os.PathLike,
    *,
    error: float = ERROR,
    certainty: float = CERTAINTY,
    model: str | None = None,
) -> Evidence:
    """Finds the threshold of a finished run on its validation rows, checks it on its test rows, and keeps both.

    Args:
        error: rate of wrong answers among those given, at most.
        certainty: probability that this promise holds.
        model: where the run's base lies now.

    Raises:
        LorakitError: a share is none, the run cannot be opened, or it has no validation rows with answers.
    """
    promised(error, certainty)
    started, opened = time.process_time(), open_run(path, model=model)
    engine = opened.engine()
    try:
        sets = {name: _judged(opened, engine, name) for name in ("validation", "test")}
    finally:
        engine.close()
    confidence, right = sets["validation"]
    if not len(right):
        raise LorakitError(
            "has no validation rows with answers",
            where=opened.folder.path,
            cure="train with a validation_fraction, e.g. 0.2",
        )
    found = threshold(confidence, right, error, certainty)
    figures = {
        "threshold": None if math.isinf(found.value) else found.value,
        "always": found.value == -math.inf,
        "error": error,
        "certainty": certainty,
        "sets": {
            name: {"confidence": c.tolist(), "right": r.tolist()} for name, (c, r) in sets.items()
        },
        "cpu_seconds": time.process_time() - started,
    }
    weights = evidence.weights(opened.folder)
    return evidence.keep(
        opened.folder, said(found, sets, error, certainty, figures=figures, weights=weights)
    )


def _judged(opened: FinishedRun, engine: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities (n,) of the answers to one set of rows, which are right (n,)); a row of each source."""
    rows = opened.rows(name)
    if rows is None or not len(rows):
        return np.zeros(0), np.zeros(0, dtype=bool)
    rows = rows.chosen(evidence.one_of_each(rows.sources))
    answers, confidence = answered(engine, rows, opened.meta, opened.run)
    references = rows.column("reference")
    asked = [
        i for i, (a, r) in enumerate(zip(answers, references, strict=True)) if None not in (a, r)
    ]
    if not asked:
        return np.zeros(0), np.zeros(0, dtype=bool)
    options = opened.record.get("metrics", {}).get("exact_match", {})
    said = Outcome(np.zeros((len(asked), 3)), [answers[i] for i in asked])
    right = evaluate.statistics("exact_match", options, said, [references[i] for i in asked])
    return confidence[asked], right[:, 0] > 0


def said(
    found: Threshold,
    sets: Mapping[str, tuple[np.ndarray, np.ndarray]],
    error: float,
    certainty: float,
    **more: Any,
) -> Evidence:
    """What a threshold means, for people."""
    confidence, right = sets["test"]
    given = confidence > found.value
    if not found.answered:
        headline = _cannot(found, *sets["validation"], error, certainty)
        return Evidence("trust", headline, False, limits=LIMITS, **more)
    base = (given.sum(), len(given)) if len(given) else (found.answered, found.rows)
    low, high = share(*map(int, base))
    headline = (
        f"Answers {percent(base[0] / base[1])} of the questions by itself (95 % interval {percent(low)} to "
        f"{percent(high)}) and passes the others on to a person; at most {percent(error)} of its answers are wrong, "
        f"with {percent(certainty)} certainty."
    )
    sentences = [
        f"The threshold comes from {found.rows} validation rows, of which it answers {found.answered}, "
        f"{found.wrong} of them wrongly."
    ]
    if given.any():
        bad = counted(int((given & ~right).sum()), int(given.sum()))
        all_bad = counted(int((~right).sum()), len(right))
        sentences.append(
            f"Checked on test rows: of the answers given, {bad} were wrong; of all, {all_bad} would have been."
        )
    return Evidence("trust", headline, True, sentences, LIMITS, **more)


LIMITS = (
    "It cannot tell about questions of another kind than the validation rows, nor which single answer is wrong.",
    "The validation rows also chose the best checkpoint; the check on the test rows is free of that.",
)


def _cannot(
    found: Threshold, confidence: np.ndarray, right: np.ndarray, error: float, certainty: float
) -> str:
    """Why there is no threshold, and what it would take."""
    promise = f"at most {percent(error)} wrong answers with {percent(certainty)} certainty"
    least = rows_needed(error, certainty)
    if least is None or found.rows < least:
        return (
            f"Cannot tell: {found.rows} validation rows are too few to promise {promise}; {least} are needed, and "
            "more where some answers are wrong."
        )
    first = max(least, -(-found.rows // 2))
    wrong = int((~right[np.argsort(-confidence, kind="stable")[:first]]).sum())
    needed = rows_needed(error, certainty, wrong / first)
    cure = (
        f"If that rate holds, {2 * needed:,} validation rows would do."
        if needed
        else "More rows to measure on will not change that: train a better model, or allow more wrong answers."
    )
    return (
        f"Cannot promise {promise}: of its surest answers {counted(wrong, first)} are wrong. {cure}"
    )


def known(folder: Any) -> Mapping[str, Any] | None:
    """The figures of the threshold that was found for a run; None where there is none."""
    found = evidence.read(folder, "trust")
    return found.figures if found and found.told else None


def sure(folder: Any, log_probability: float) -> bool | None:
    """Whether an answer of a run may be given without asking a person; None where no threshold is kept."""
    figures = known(folder)
    return None if figures is None else passes(figures, log_probability)


def passes(figures: Mapping[str, Any], log_probability: float) -> bool:
    """Whether an answer is surer than the threshold of these figures."""
    return bool(figures["always"] or log_probability > figures["threshold"])


def draw(figures: Mapping[str, Any], colours: Palette) -> Figure:
    """The rate of wrong answers over the share of questions answered, the surest first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("validation", colours.validation), ("test", colours.training)):
        known = figures["sets"][name]
        x, rate, low, high = _curve(known["confidence"], known["right"])
        axes.plot(x, rate, color=colour, label=f"{name} rows ({len(x)})")
        if name == "validation":
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            given = [c > (figures["threshold"] or -math.inf) for c in known["confidence"]]
            if figures["always"] or figures["threshold"] is not None:
                axes.axvline(sum(given) / len(given), color=colours.ink, label="threshold")
    axes.axhline(figures["error"], color=colours.worse, linestyle=":", label="promised at most")
    worst = max(
        (1 - np.mean(s["right"]) for s in figures["sets"].values() if s["right"]), default=1
    )
    axes.set(xlim=(0, 1), ylim=(0, min(1.02, max(4 * figures["error"], 1.5 * worst))))
    axes.set_xlabel("share of questions answered, the surest first")
    axes.set_ylabel("wrong among those answered")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False)
    bare(axes)
    return figure


def _curve(confidence: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, ...]:
    """(share answered, wrong among those, lower and upper end of its 95 % interval), each (n,)."""
    order = np.argsort(-np.asarray(confidence, dtype=float), kind="stable")
    wrong = np.cumsum(~np.asarray(right, dtype=bool)[order])
    counts = np.arange(1, len(order) + 1)
    ends = np.array([share(int(k), int(n)) for k, n in zip(wrong, counts, strict=True)])
    low, high = ends.reshape(-1, 2).T
    return counts / max(len(order), 1), wrong / counts, low, high
