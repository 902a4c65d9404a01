"""Which training answers are wrong? Answers that models which never saw them contradict, the most suspicious first.

Every fold's model answers its own test rows, so each row is judged out of fold. With a the model's answer and y the
file's, in nats, a row's suspicion is

    margin = (log p(a | question) - log p(y | question)) / tokens of y,    0 where a = y

(the normalized margin of confident learning, Northcutt, Jiang & Chuang, arXiv 1911.00068 §3.2, on whole answers). A row
stands out when a != y and p(a) is at least t, the mean of p(a) over rows where a = y (its threshold of
self-confidence).

A model errs on sound rows as well, the less the surer it is; wrong answers are contradicted however sure it is:

    P(a = y) = (1 - e) sigmoid(s logit p(a) + c)

s and c recalibrate the model (Platt scaling), e is the share of wrong answers, by maximum likelihood; with the
interval of its profile likelihood. Wrong answers are only reported when e > 0 by a likelihood-ratio test (5 %,
on the edge of the range: Self & Liang 1987). Assumptions: rows are independent, wrong answers are a minority and not
wrong by a rule that the folds' models learn as well.
"""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.common.text import label
from lorakit.data import loading
from lorakit.data.matching import columns_of
from lorakit.data.sources import of_run
from lorakit.results import evidence
from lorakit.results.compare import outcome
from lorakit.results.confidence import answered
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import Evidence, counted, percent
from lorakit.results.open_run import open_run
from lorakit.results.plots import bare
from lorakit.runs.folder import RunFolder, write_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette

QUESTION = "Which training answers are wrong?"
FEWEST = 100  # rows; of fewer a twentieth is not five
SHOWN = 12  # rows in a report; the table that is written has all that contradict
COLUMNS = ("decision", "row", "question", "answer", "model's answer", "suspicion")
DECISIONS = ("keep", "fix", "drop")


@dataclass(frozen=True)
class Ranking:
    """Rows by suspicion, and what share of all answers is wrong by the model's own measure."""

    order: np.ndarray  # (n,) the most suspicious first
    margin: np.ndarray  # (n,) nats per token
    standing_out: np.ndarray  # (n,) bool, contradicted by a model that is sure
    rate: float  # share of wrong answers
    interval: tuple[float, float]  # 95 % of it
    found: bool  # whether it is above 0 by more than chance


def rank(own: np.ndarray, given: np.ndarray, tokens: np.ndarray, agree: np.ndarray) -> Ranking:
    """From log p of the models' answers and of the file's (n,), the tokens of these, and whether both are equal."""
    margin = np.where(agree, 0.0, np.maximum(own - given, 0.0) / np.maximum(tokens, 1))
    sure = np.exp(np.minimum(own, 0.0))
    bar = sure[agree].mean() if agree.any() else 1.0
    order = np.lexsort((-own, -margin))
    return Ranking(order, margin, ~agree & (sure >= bar), *wrong_share(sure, agree))


def wrong_share(sure: np.ndarray, agree: np.ndarray) -> tuple[float, tuple[float, float], bool]:
    """(e, its 95 % interval, whether e > 0 is shown) from p(a) and whether a = y, each (n,)."""
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    known = logit(np.clip(sure, 1e-6, 1 - 1e-6))

    def loss(line: np.ndarray, e: float) -> float:
        share = (1 - e) * expit(line[0] * known + line[1])
        return -float(np.log(np.clip(np.where(agree, share, 1 - share), 1e-12, 1)).sum())

    grid = np.linspace(0, 0.3, 31)
    line, losses = np.array([1.0, 0.0]), []
    for e in grid:
        fit = minimize(loss, line, args=(e,), bounds=[(0.0, 20.0), (-20.0, 20.0)])
        line = fit.x
        losses.append(fit.fun)
    excess = 2 * (np.asarray(losses) - min(losses))
    inside = grid[excess <= 3.84]  # chi-squared of one degree of freedom, 95 %
    interval = float(inside[0]), float(inside[-1])
    return float(grid[excess.argmin()]), interval, bool(excess[0] > 2.71)


def measure(path: str | os.PathLike, *, model: str | None = None) -> Evidence:
    """Ranks the rows of a run with `folds`, writes `evidence/suspicious.csv` to look through, and keeps the answer.

    Args:
        model: where the base lies now.

    Raises:
        LorakitError: the run has no folds, or they are not done.
    """
    started, folder = time.process_time(), RunFolder.of(path)
    parts = sorted(
        (folder.path / "folds").glob("fold-*"), key=lambda p: int(p.name.partition("-")[2])
    )
    if not parts:
        raise LorakitError(
            "was trained without folds, so that no model answered its rows unseen",
            setting="folds",
            where=folder.path,
            cure="train with folds=5",
        )
    lines: list[dict[str, Any]] = []
    columns: list[np.ndarray] = []
    for part in parts:
        found, rows = outcome(RunFolder(part))
        answers, own = _own(part, found, model)
        given = -found.tokens[:, 0]
        same = [
            (row["reference"] or "").strip() == (a or "").strip()
            for row, a in zip(rows, answers, strict=True)
        ]
        columns.append(np.stack([own, given, found.tokens[:, 1], np.asarray(same, float)]))
        lines += [{**row, "own": a} for row, a in zip(rows, answers, strict=True)]
    own, given, tokens, agree = np.concatenate(columns, axis=1)
    asked = np.isfinite(own)
    lines = [line for line, known in zip(lines, asked, strict=True) if known]
    ranking = rank(own[asked], given[asked], tokens[asked], agree[asked] > 0)
    written = write_table(folder, lines, ranking)
    figures = {
        "margin": ranking.margin[ranking.order].tolist(),
        "standing_out": ranking.standing_out[ranking.order].tolist(),
        "rate": ranking.rate,
        "interval": list(ranking.interval),
        "cpu_seconds": time.process_time() - started,
    }
    known = {"figures": figures, "weights": evidence.weights(folder)}
    return evidence.keep(folder, said(ranking, lines, written, **known))


def _own(part: Path, found: Outcome, model: str | None) -> tuple[Sequence[str | None], np.ndarray]:
    """(a fold's own answers to its test rows, log p of each (n,)); of classes they are known from its scores."""
    if found.probabilities is not None:
        return found.answers, np.log(found.probabilities.max(axis=1))
    opened = open_run(part, model=model)
    test = opened.rows("test")
    if test is None:
        raise LorakitError("has no test rows", where=part, cure="train the folds again")
    engine = opened.engine()
    try:
        return answered(engine, test, opened.meta, opened.run)
    finally:
        engine.close()


def write_table(folder: RunFolder, lines: Sequence[Mapping[str, Any]], ranking: Ranking) -> Path:
    """`evidence/suspicious.csv`: every contradicted row, with a first column for the decision keep, fix or drop."""
    contradicted = [i for i in ranking.order if ranking.margin[i] > 0]
    cells = [
        ("", lines[i].get("where", ""), *(lines[i][k] for k in ("prompt", "reference", "own")))
        for i in contradicted
    ]
    margins = [f"{ranking.margin[i]:.3f}" for i in contradicted]
    return _write(folder, [(*row, margin) for row, margin in zip(cells, margins, strict=True)])


def _write(folder: RunFolder, rows: Iterable[Sequence[str]]) -> Path:
    path = table_path(folder)
    with (
        atomic_write(path) as part,
        open(part, "w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def table_path(folder: RunFolder) -> Path:
    """Where the table to look through lies."""
    return folder.evidence("suspicious").with_suffix(".csv")


def said(
    ranking: Ranking, lines: Sequence[Mapping[str, Any]], written: Path, **more: Any
) -> Evidence:
    """What a ranking means, for people."""
    n, hits = len(lines), int(ranking.standing_out.sum())
    low, high = ranking.interval
    share = f"{percent(ranking.rate)} (95 % interval {percent(low)} to {percent(high)}) of the answers look wrong"
    if n < FEWEST:
        headline = f"Cannot tell: {n} rows are too few; at least {FEWEST} are needed."
        return Evidence("suspicious", headline, False, limits=LIMITS, **more)
    if not ranking.found:
        headline = (
            f"Nothing stands out: {share}, and the models' own errors explain the contradictions."
        )
        return Evidence("suspicious", headline, True, limits=LIMITS, **more)
    headline = (
        f"Models that never saw them contradict {counted(hits, n)} answers with confidence: review these. "
        f"If the models' probabilities are right, about {share}."
    )
    best = [i for i in ranking.order if ranking.standing_out[i]][:SHOWN]
    cells = [
        [
            str(lines[i].get("where", "")),
            *(label(str(lines[i][k]), 160) for k in ("prompt", "reference", "own")),
            f"{ranking.margin[i]:.2f}",
        ]
        for i in best
    ]
    sentences = [
        f"All contradicted rows, the most suspicious first, are in {written.name}: write keep, fix or drop into its "
        "first column, then make a cleaned file of it (lorakit suspicious RUN_DIR --apply). Train with that and "
        "compare the two runs: that is the score with and without them."
    ]
    return Evidence("suspicious", headline, True, sentences, LIMITS, [COLUMNS[1:], *cells], **more)


LIMITS = (
    "A contradiction is no proof: the answer may be right and rare, and models that are sure of their own mistakes, as "
    "after training until the loss is near 0, contradict right answers of a clean file too. It cannot tell about wrong "
    "answers that follow a rule, which the models learn like any other.",
)


def table(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of the table to look through, by `COLUMNS`. Raises `LorakitError` where there is none."""
    place = table_path(RunFolder.of(path))
    if not place.is_file():
        raise LorakitError(
            "no table to look through", where=place, cure="write it: lorakit suspicious RUN_DIR"
        )
    with open(place, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def decide(path: str | os.PathLike, row: str, decision: str, answer: str | None = None) -> None:
    """Writes a decision, and of `fix` the right answer, into the table."""
    lines = table(path)
    for line in lines:
        if line["row"] == row:
            line["decision"] = decision
            line["answer"] = line["answer"] if answer is None else answer
    _write(RunFolder.of(path), [[line[name] for name in COLUMNS] for line in lines])


def decisions(path: str | os.PathLike) -> dict[str, tuple[str, str]]:
    """`file:row` -> (decision, answer) of a table that was looked through; a row without a decision is kept.

    Raises `LorakitError` for another word, and where there is no table.
    """
    found = {}
    for line in table(path):
        word = (line["decision"] or "").strip().casefold() or "keep"
        if word not in DECISIONS:
            raise LorakitError(
                f"{word!r} is no decision",
                value=word,
                where=f"{table_path(RunFolder.of(path))}, {line['row']}",
                cure="write keep, fix (and the right answer into the column answer) or drop",
            )
        found[line["row"]] = (word, line["answer"])
    return found


def cleaned(path: str | os.PathLike, target: Path) -> Counter[str]:
    """Writes the run's rows as the table decides, as JSON Lines, and counts the decisions. Never over a file.

    Raises `LorakitError` where the file is there, for a table that cannot be read, and for pictures and sounds.
    """
    opened = open_run(path, adapted=False)
    run, task, decided = opened.run, opened.task, decisions(path)
    if target.exists() or task.MEDIUM:
        raise LorakitError(
            "is there already"
            if target.exists()
            else f"rows of {task.MEDIUM}s cannot be rewritten",
            where=target,
            cure="name another file" if target.exists() else "change the data by hand",
        )
    place = of_run(run.data, format=run.format, media_folder=run.media_folder)["train"]
    examples, _ = loading.load(place, **columns_of(run), gives=task.GIVES)
    counts: Counter[str] = Counter()
    rows = []
    for example in examples:
        word, answer = decided.get(example.where, ("keep", ""))
        counts[word] += 1
        row = {k: v for k, v in example.fields.items() if k in (task.GIVES, "label")}
        if word == "fix" and "messages" in row:
            row["messages"] = [*row["messages"][:-1], {**row["messages"][-1], "content": answer}]
        elif word == "fix":
            row["label"] = answer
        if word != "drop":
            rows.append(row)
    write_lines(target, rows)
    return counts


def draw(figures: Mapping[str, Any], colours: Palette) -> Figure:
    """The suspicion of every row, the most suspicious first; those that stand out in colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    axes = figure.subplots()
    margin, out = np.asarray(figures["margin"]), np.asarray(figures["standing_out"], dtype=bool)
    places = np.arange(1, len(margin) + 1)
    axes.plot(places, margin, color=colours.quiet, linewidth=1.5, label="all rows")
    axes.plot(places[out], margin[out], "o", color=colours.worse, markersize=4, label="stands out")
    axes.set(xlabel="row, the most suspicious first", ylabel="suspicion (nats per token)")
    axes.legend(frameon=False)
    bare(axes)
    return figure
