"""Answers in the form that was taught: how many have it before training, after it, and when they are held to it.

The form is found in the training answers (`lorakit.results.form`). Held to it, each token is the most probable one
after which the answer may still be completed to the form (constrained decoding: Willard & Louf, arXiv 2307.09702; Geng
et al., arXiv 2305.13971). Shares of valid answers carry intervals by Clopper & Pearson; the score's difference is a
paired bootstrap over test rows. Assumptions: test rows are independent, and later answers are to have the form that
every training answer has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.common.errors import LorakitError
from lorakit.results import evaluate, evidence
from lorakit.results.compare import outcome
from lorakit.results.evaluate import Outcome
from lorakit.results.evidence import Evidence, counted, share
from lorakit.results.form import FEWEST, Form, acceptor, infer
from lorakit.results.open_run import open_run
from lorakit.results.plots import bare
from lorakit.results.verdict import interval, named, primary, signed
from lorakit.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette

QUESTION = "Are the answers in the form that was taught?"
FEWEST_TESTED = 30


def measure(path: str | os.PathLike, *, model: str | None = None) -> Evidence:
    """Finds the form of a finished run's training answers, and answers its test rows held to it.

    Args:
        model: where the run's base lies now.

    Raises:
        LorakitError: the run has no scored test rows, or its answers are classes already.
    """
    started, opened = time.process_time(), open_run(path, model=model)
    train, test = opened.rows("train"), opened.rows("test")
    if train is None or test is None or test.classes or opened.meta["opening"] is not None:
        raise LorakitError(
            "has no answers in words on test rows, or its template writes thoughts before them",
            where=opened.folder.path,
            cure="measure a run of the task chat with a test_fraction",
        )
    found, lines = outcome(opened.folder)
    before = Outcome.read(opened.folder.outcome("before"))
    answers = [r for r in train.column("reference") if r]
    form = infer(answers)
    known: dict[str, Any] = {"weights": evidence.weights(opened.folder)}
    if form is None:
        few = f"; {FEWEST} are needed" if len(answers) < FEWEST else ""
        headline = f"Cannot tell: the {len(answers)} training answers have no form in common{few}."
        return evidence.keep(opened.folder, Evidence("form", headline, False, **known))
    engine = opened.engine()
    try:
        held = evaluate.generate(
            engine,
            test,
            engine.tokenizer,
            opened.meta["stop_ids"],
            opened.run.max_new_tokens,
            accepts=acceptor(form, engine.tokenizer, opened.meta["stop_ids"]),
        )
    finally:
        engine.close()
    constrained = Outcome(found.tokens, held, found.sources)
    metric = primary(opened.folder.scores)
    references = [line["reference"] for line in lines]
    entry = evaluate.entry(
        metric, opened.record["metrics"].get(metric, {}), found, constrained, references
    )
    valid = {
        name: sum(map(form.fits, one.answers))
        for name, one in (("before", before), ("after", found), ("held to it", constrained))
    }
    figures = {
        "form": form.plain(),
        "valid": valid,
        "rows": len(lines),
        "cpu_seconds": time.process_time() - started,
    }
    return evidence.keep(
        opened.folder, said(form, valid, len(lines), metric, entry, figures=figures, **known)
    )


def said(
    form: Form,
    valid: Mapping[str, int],
    rows: int,
    metric: str,
    entry: Mapping[str, Any],
    **more: Any,
) -> Evidence:
    """What was found, for people."""
    if rows < FEWEST_TESTED:
        headline = (
            f"Cannot tell: {rows} test rows are too few; at least {FEWEST_TESTED} are needed."
        )
        return Evidence("form", headline, False, (), LIMITS, **more)
    headline = f"{counted(valid['after'], rows)} of the tuned model's answers have the form of the training answers."
    change = f"{signed(entry['difference'])} (95 % interval {interval(entry['interval'])})"
    sentences = [
        f"The form: {form}",
        f"Before training: {counted(valid['before'], rows)}; held to the form: {counted(valid['held to it'], rows)}.",
        f"Held to the form, {named(metric)} changes by {change}.",
    ]
    return Evidence("form", headline, True, sentences, LIMITS, **more)


LIMITS = (
    "An answer of the right form may still be wrong. It cannot tell about answers that need a value which no training "
    "answer had: held to the form, they get another one.",
)


def taught(folder: RunFolder) -> Form | None:
    """The form that was measured for these weights; None where none is kept."""
    known = evidence.read(folder, "form")
    return Form.of(known.figures["form"]) if known and "form" in known.figures else None


def unknown_form(path: str | os.PathLike) -> LorakitError:
    """For answers that are to be held to a form that was not looked for, or not found."""
    return LorakitError(
        "no form of answers is known", where=path, cure=f"find it: lorakit form {path}"
    )


def draw(figures: Mapping[str, Any], colours: Palette) -> Figure:
    """Shares of answers that have the form, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 2.4), layout="constrained")
    axes = figure.subplots()
    valid, rows = figures.get("valid", {}), figures.get("rows", 0)
    for place, hits in enumerate(valid.values()):
        axes.plot(share(hits, rows), [place, place], color=colours.training, linewidth=4)
        axes.plot(hits / max(rows, 1), place, "o", color=colours.training, markersize=8)
    axes.set_yticks(range(len(valid)), list(valid))
    axes.set(xlim=(-0.02, 1.02), xlabel="answers that have the form")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bare(axes)
    return figure
