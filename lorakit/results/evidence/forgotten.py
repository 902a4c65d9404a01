"""What did it forget? The base and the tuned model on the same general questions, scored by exact rules.

`assets/general_suite.jsonl` was written for this: facts, arithmetic, instructions, nonsense to be refused, formatting,
German and Spanish. Fine-tuning on a narrow task makes a model worse at others (catastrophic forgetting: Luo et al.,
arXiv 2308.08747; less with LoRA of low rank: Biderman et al., arXiv 2405.09673). The figure is the change of the share
of right answers, with the paired bootstrap interval of 95 % over the questions. Assumptions: the questions stand for
what the model knew, and are asked in one turn without a system prompt.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.results import evidence, intervals
from lorakit.results.ask import replies
from lorakit.results.evidence import Evidence, counted, percent, share
from lorakit.results.open_run import open_run
from lorakit.results.plots import bare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette

QUESTION = "What did it forget?"
SUITE = Path(__file__).parents[2] / "assets" / "general_suite.jsonl"
TOKENS, TOGETHER = 48, 16  # of an answer; questions answered together
KNEW = 0.1  # share of right answers from which a base knew something that can be forgotten
FEWEST = 50


def suite(path: Path = SUITE) -> list[dict[str, Any]]:
    """The questions: `kind`, `prompt`, `rule` (contains, matches, number or json) and `value`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def right(answer: str, rule: str, value: Any) -> bool:
    """Whether an answer is right by its rule. Raises `ValueError` for an unknown rule.

    contains: one of the words stands in it, as a word, in whatever case. matches: the regular expression matches all of
    it. number: the last number in it is this one. json: it is, perhaps between code marks, this value.
    """
    if rule == "contains":
        words = "|".join(re.escape(word) for word in value)
        return re.search(rf"(?<!\w)(?:{words})(?!\w)", answer, re.IGNORECASE) is not None
    if rule == "matches":
        return re.fullmatch(value, answer) is not None
    if rule == "number":
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == value
    if rule == "json":
        try:
            return bool(json.loads(re.sub(r"^```(?:json)?|```$", "", answer.strip())) == value)
        except ValueError:
            return False
    raise ValueError(f"there is no rule {rule!r}")


def spread(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The questions in an order whose every beginning holds as many of each kind."""
    seen: Counter[str] = Counter()
    places = []
    for item in items:
        places.append(seen[item["kind"]])
        seen[item["kind"]] += 1
    return [items[i] for i in np.argsort(places, kind="stable")]


def answers_right(
    engine: Any,
    meta: dict[str, Any],
    items: Sequence[Mapping[str, Any]],
    max_new_tokens: int = TOKENS,
    more: Callable[[int], bool] = lambda done: True,
) -> list[bool]:
    """Which questions a loaded model answers rightly, in their order, until `more` of those done says to stop."""
    out: list[bool] = []
    while len(out) < len(items) and more(len(out)):
        some = items[len(out) : len(out) + TOGETHER]
        said = replies(engine, meta, [item["prompt"] for item in some], max_new_tokens)
        out += [
            right(reply.text, item["rule"], item["value"])
            for reply, item in zip(said, some, strict=True)
        ]
    return out


def asks(task: Any, meta: Mapping[str, Any]) -> bool:
    """Whether a task's models answer general questions: those that chat in words."""
    return task.GIVES == "messages" and not task.MEDIUM and not meta["classes"]


def measure(
    path: str | os.PathLike,
    *,
    questions: Sequence[Mapping[str, Any]] | None = None,
    max_new_tokens: int = TOKENS,
    model: str | None = None,
) -> Evidence:
    """Asks the base and the tuned model of a finished chat run, and keeps what changed.

    Args:
        questions: as `suite` gives them; None: those that come with lorakit.
        max_new_tokens: length of an answer at most.
        model: where the run's base lies now.

    Raises:
        LorakitError: the run is none of chats.
    """
    started, opened = time.process_time(), open_run(path, model=model)
    items = suite() if questions is None else [*questions]
    if not asks(opened.task, opened.meta):
        raise LorakitError(
            "is no run of chats, so it cannot be asked general questions",
            where=opened.folder.path,
            cure="name a run with task: chat",
        )
    sides = {}
    for when in ("before", "after"):
        engine = opened.engine(adapted=when == "after")
        try:
            sides[when] = answers_right(engine, opened.meta, items, max_new_tokens)
        finally:
            engine.close()
    seconds = time.process_time() - started
    weights = evidence.weights(opened.folder)
    kinds = [item["kind"] for item in items]
    return evidence.keep(
        opened.folder, said(kinds, sides["before"], sides["after"], seconds, weights)
    )


def said(
    kinds: Sequence[str],
    before: Sequence[bool],
    after: Sequence[bool],
    seconds: float = 0.0,
    weights: Mapping[str, str] | None = None,
    note: str = "",
) -> Evidence:
    """What changed, for people; `note`: how the questions were chosen."""
    n, first, last = len(kinds), np.asarray(before, float), np.asarray(after, float)
    table, by_kind = [["kind", "questions", "right before", "right after"]], {}
    for kind in dict.fromkeys(kinds):
        some = [i for i, k in enumerate(kinds) if k == kind]
        hits = int(first[some].sum()), int(last[some].sum())
        by_kind[kind] = [*hits, len(some)]
        table.append([kind, str(len(some)), *(counted(h, len(some)) for h in hits)])
    figures = {"kinds": by_kind, "cpu_seconds": seconds}
    more = (LIMITS, table, figures, weights or {})
    if n < FEWEST:
        headline = f"Cannot tell: {n} questions are too few; at least {FEWEST} are needed."
        return Evidence("forgotten", headline, False, (), *more)
    if first.mean() < KNEW:
        headline = (
            f"Cannot tell: the base answers {counted(int(first.sum()), n)} of the questions; a model that knows less "
            f"than {percent(KNEW)} cannot show what it forgets."
        )
        return Evidence("forgotten", headline, False, (), *more)
    _, _, change, ends = intervals.paired_difference(
        lambda rows: float(rows.mean()), first[:, None], last[:, None]
    )
    gap = f"{100 * change:+.0f} points (95 % interval {100 * ends.low:+.0f} to {100 * ends.high:+.0f})"
    if ends.high < 0:
        headline = f"It forgot: {gap} on {n} general questions. Try fewer epochs, a lower rate or rank, or replay."
    elif ends.low > 0:
        headline = f"No forgetting is shown; it even got better: {gap} on {n} general questions."
    else:
        headline = f"No forgetting is shown: {gap} on {n} general questions."
    sentences = [
        f"Right before: {counted(int(first.sum()), n)}; after: {counted(int(last.sum()), n)}.",
        *([note] if note else []),
    ]
    return Evidence("forgotten", headline, True, sentences, *more)


LIMITS = (
    "It cannot tell about knowledge that these questions do not ask for, about long conversations or safety; a model "
    "that answers in its new form may still know what it no longer says.",
)


def draw(figures: Mapping[str, Any], colours: Palette) -> Figure:
    """Right answers before and after by kind of question, with their intervals."""
    from matplotlib.figure import Figure

    kinds = figures["kinds"]
    figure = Figure(figsize=(6.6, 1.2 + 0.45 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    for place, (before, after, n) in enumerate(kinds.values()):
        for hits, shift, colour in (
            (before, -0.15, colours.quiet),
            (after, 0.15, colours.training),
        ):
            axes.plot(share(hits, n), [place + shift] * 2, color=colour, linewidth=4, alpha=0.5)
            name = {-0.15: "before", 0.15: "after"}[shift] if not place else None
            axes.plot(hits / n, place + shift, "o", color=colour, markersize=7, label=name)
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.set(xlim=(-0.02, 1.02), xlabel="right answers")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False)
    bare(axes)
    return figure
