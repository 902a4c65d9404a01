"""What the scores of a run mean, in a sentence for people who know no statistics.

The answers decide, not the loss: a run whose loss fell while its answers stayed as they were is not called better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lorakit.common import registry
from lorakit.common.text import label
from lorakit.results.evaluate import ENOUGH, better, pieces

Kind = Literal["better", "worse", "open"]
Scores = Mapping[str, Mapping[str, Any]]

# The most telling first. What is not listed comes from a metric that was added, and is about answers.
ANSWERS = ("exact_match", "accuracy", "f1", "roc_auc", "wer", "cer", "bleu", "chrf", "rouge")
TOKENS = ("token_accuracy", "loss", "perplexity")
COUNTED = {
    "exact_match": "test answers are exactly right",
    "accuracy": "test rows are classified correctly",
}
NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "cer": "character error rate",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "rouge": "ROUGE",
    "wer": "word error rate",
}
MEANING = {
    "exact_match": "share of answers that equal the expected answer",
    "accuracy": "share of rows that got the right class",
    "f1": "right classes, each class weighing the same; 1 is perfect",
    "roc_auc": "how well the classes are told apart; 0.5 is guessing, 1 is perfect",
    "wer": "wrong words per word of the expected text; 0 is perfect",
    "cer": "wrong characters per character of the expected text; 0 is perfect",
    "bleu": "shared word sequences with the expected answer; 100 is the same text",
    "chrf": "shared letter sequences with the expected answer; 100 is the same text",
    "rouge": "shared words with the expected answer; 1 is the same text",
    "token_accuracy": "share of word pieces predicted rightly, given the right text before",
    "loss": "how surprised the model is by the expected answer; lower is better",
    "perplexity": "between how many equally likely word pieces the model chooses; lower is better",
}
BEST = {"bleu": 100.0, "chrf": 100.0, "loss": 0.0, "perplexity": 1.0, "wer": 0.0, "cer": 0.0}
POINTS = {"bleu": 1, "chrf": 1, **dict.fromkeys((*ANSWERS[:6], "rouge", "token_accuracy"), 100)}


class Verdict(NamedTuple):
    """`kind` for colours and programs, `headline` for people."""

    kind: Kind
    headline: str


def number(value: float | None) -> str:
    """`0.917`, `1,204`, `2.1e-05`; a dash where there is none."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"
    return f"{value:.1e}" if value and abs(value) < 0.001 else f"{value:.3f}"


def short(value: float | None) -> str:
    """As `number`, without digits that nobody reads: `0`, `3.4`, `0.92`."""
    if value is None or abs(value) >= 100 or 0 < abs(value) < 0.01:
        return number(value)
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}".rstrip("0").rstrip(".")


def signed(value: float | None) -> str:
    return "–" if value is None else ("+" if value >= 0 else "−") + number(abs(value))


def interval(pair: list[float | None]) -> str:
    return "none" if None in pair else f"{signed(pair[0])} to {signed(pair[1])}"


def named(metric: str) -> str:
    """How people call a metric."""
    return NAMES.get(metric) or label(metric.replace("_", " "))


def ordered(scores: Scores) -> list[str]:
    """The metrics, what tells most about the answers first."""
    known = (*ANSWERS, *TOKENS)
    return sorted(
        scores, key=lambda m: known.index(m) if m in known else len(ANSWERS) - 0.5
    )  # a metric that was added: before those of tokens


def about_answers(scores: Scores) -> list[str]:
    """The metrics of answers that have a value before and after, the most telling first."""
    return [
        m for m in ordered(scores) if m not in TOKENS and scores[m].get("difference") is not None
    ]


def primary(scores: Scores) -> str:
    """The metric that the headline is about: the first one of answers that is not 0 before and after.

    Exact match of free text is 0 before and after and says nothing. Without any of answers it is the loss.
    """
    answers = about_answers(scores)
    telling = [m for m in answers if scores[m]["before"] or scores[m]["after"]]
    tokens = [m for m in ("loss", *TOKENS) if m in scores]
    return next(iter([*telling, *answers, *tokens, *scores]), "")


def change(metric: str, entry: Mapping[str, Any]) -> str:
    """`exact match 0 → 0.92`"""
    return f"{named(metric)} {short(entry['before'])} → {short(entry['after'])}"


def size(metric: str, value: float) -> str:
    """A difference in the unit that people count in: `8 points`, `0.12`."""
    if metric not in POINTS:
        return short(abs(value))
    points = abs(value) * POINTS[metric]
    text = f"{points:.0f}" if points >= 1 else f"{points:.1g}"
    return f"{text} {'percentage ' if POINTS[metric] == 100 else ''}point{'s' * (text != '1')}"


def visible(metric: str, entry: Mapping[str, Any]) -> float | None:
    """The smallest difference that these rows could have shown: half the width of the interval."""
    low, high = entry["interval"]
    return None if low is None or high is None or high <= low else (high - low) / 2


def evidence(metric: str, entry: Mapping[str, Any]) -> str:
    """What so many rows can show and what not, in a sentence; empty where nothing can be said."""
    rows, smallest = entry["rows"], visible(metric, entry)
    count = f"{rows} test row{'s' * (rows != 1)}"
    if entry.get("groups") == 1:
        return f"All {count} belong to one group, which counts as one piece of evidence: hold out several groups."
    if pieces(entry) < ENOUGH:
        what = "groups" if "groups" in entry else "rows"
        return (
            f"{pieces(entry)} test {what} are too few to tell: keep at least {ENOUGH}, better 100."
        )
    if smallest:
        return f"With {count}, improvements below {size(metric, smallest)} would not be visible."
    if entry["interval"][0] is None:
        return ""
    return f"All {count} agree, which says nothing about cases rarer than one in {max(1, rows // 3)} (rule of three)."


def _counts(metric: str, entry: Mapping[str, Any]) -> str:
    """`110 of 120 test answers are exactly right; before training it was 14`, or the change in figures."""
    if metric in COUNTED and "groups" not in entry:
        before, after = (round(entry[when] * entry["rows"]) for when in ("before", "after"))
        return f"{after} of {entry['rows']} {COUNTED[metric]}; before training it was {before}"
    return f"{change(metric, entry)} on {entry['rows']} test rows"


def _range(metric: str, entry: Mapping[str, Any]) -> str:
    low, high = sorted(map(abs, entry["interval"]))
    ends = [size(metric, low), size(metric, high)]
    gained = "improvement" if better(entry) else "decline"
    if ends[0] == ends[1]:
        return f"The {gained} is {ends[0]}."
    first = ends[0] if metric not in POINTS else ends[0].split()[0]
    return f"The {gained} is most likely between {first} and {ends[1]}."


def _loss_moved(scores: Scores) -> bool | None:
    return better(scores["loss"]) if "loss" in scores else None


def verdict(scores: Scores, task: str | None = None) -> Verdict:
    """Whether the run made the model better, and the evidence, in one or two sentences.

    Args:
        scores: metric -> entry, as in `scores.json`.
        task: a name from `lorakit/tasks/`. Only where the task has no answers to score (plain text) does the loss
            decide.
    """
    if not scores:
        return Verdict("open", "Nothing was scored: there were no test rows.")
    answers = about_answers(scores)
    return _of_answers(scores, answers) if answers else _of_loss(scores, task)


def _of_answers(scores: Scores, answers: list[str]) -> Verdict:
    directions = {m: better(scores[m]) for m in answers}
    metric = next((m for m in answers if directions[m] is not None), primary(scores))
    entry, direction = scores[metric], directions[metric]
    if direction is None:
        return _not_shown(scores, answers, metric)
    opposed = [m for m in answers if directions[m] is (not direction)]
    if opposed:
        return Verdict(
            "open",
            f"Mixed: {change(metric, entry)} is {'better' if direction else 'worse'}, but "
            f"{change(opposed[0], scores[opposed[0]])} is {'worse' if direction else 'better'}. "
            "Read the answers below before you use this model.",
        )
    return _improved(scores, metric) if direction else _declined(scores, answers, metric)


def _improved(scores: Scores, metric: str) -> Verdict:
    entry = scores[metric]
    constant = entry.get("most_frequent_answer")
    if constant and not better({**entry, **constant}):
        shown = "Not shown to be better" if entry["after"] > constant["score"] else "Not better"
        return Verdict(
            "open",
            f"{shown} than a fixed answer: {change(metric, entry)} on {entry['rows']} test rows, and always "
            f"answering “{label(constant['answer'])}” scores {short(constant['score'])}. Train longer, or check that "
            "the rows hold what the answer depends on.",
        )
    leading, rose = primary(scores), _loss_moved(scores) is False
    return Verdict(
        "better",
        f"Better: {_counts(metric, entry)}. {_range(metric, entry)}"
        + (
            f" For {change(leading, scores[leading])} no difference is shown."
            if leading != metric
            else ""
        )
        + (" The loss rose, so the model may be too sure of itself." if rose else ""),
    )


def _declined(scores: Scores, answers: list[str], metric: str) -> Verdict:
    entry = scores[metric]
    share = entry["before"] / BEST.get(metric, 1.0) if entry["higher_is_better"] else 1.0
    if _loss_moved(scores) and share < 0.1:  # it could hardly answer before either
        changes = ", ".join(
            change(m, scores[m]) + (" (worse)" if better(scores[m]) is False else "")
            for m in answers[:3]
        )
        return Verdict(
            "worse",
            f"The loss fell, but the answers did not improve: {changes}. Train longer or take a larger model.",
        )
    return Verdict(
        "worse",
        f"Worse: {_counts(metric, entry)}. {_range(metric, entry)} Try a lower learning_rate or fewer epochs, and "
        "check the training answers.",
    )


def _not_shown(scores: Scores, answers: list[str], metric: str) -> Verdict:
    """No metric of answers that leads the verdict shows a direction."""
    entry, changes = scores[metric], ", ".join(change(m, scores[m]) for m in answers[:3])
    proof = f" {evidence(metric, entry)}".rstrip()
    if pieces(entry) < ENOUGH:
        return Verdict("open", f"Too few test rows to tell: {changes}.{proof}")
    fell = _loss_moved(scores)
    if fell is not None and entry["interval"][0] == entry["interval"][1]:
        proof = ""  # of rows that all agree, and of which another score tells more
    if fell:
        return Verdict(
            "open",
            f"The loss fell, but the answers did not improve: {changes}. Train longer or take a larger model.{proof}",
        )
    if fell is False:
        return Verdict(
            "worse",
            f"Worse: the loss rose and the answers did not improve: {changes}. Try a lower learning_rate.{proof}",
        )
    return Verdict("open", f"No difference is shown: {changes}.{proof}")


def _of_loss(scores: Scores, task: str | None) -> Verdict:
    """No answer was scored. The loss alone calls a run better only where there is no answer to score."""
    metric = "loss" if "loss" in scores else primary(scores)
    entry, direction = scores[metric], better(scores[metric])
    shown = metric if "perplexity" not in scores else "perplexity"
    moved, rows = change(shown, scores[shown]), f"on {entry['rows']} test rows"
    if direction is None:
        return Verdict(
            "open", f"No difference is shown: {moved} {rows}. {evidence(metric, entry)}".strip()
        )
    if not direction:
        return Verdict(
            "worse", f"Worse: {moved} {rows}. Try a lower learning_rate or fewer epochs."
        )
    if not _answerless(task):
        return Verdict(
            "open",
            f"The loss fell ({moved} {rows}), but no answer was scored: whether the answers are better is not known. "
            "Add a metric of answers, such as exact_match or chrf.",
        )
    return Verdict(
        "better", f"Better: the model predicts text it never saw more surely, {moved} {rows}."
    )


def _answerless(task: str | None) -> bool:
    """Whether this task has no answers to score, as plain text has none."""
    return task in registry.names("tasks") and set(registry.load("tasks", str(task)).METRICS) <= {
        *TOKENS
    }


def improvement(metric: str, entry: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(value, low, high): the improvement as a share of the way from the score before to a perfect one.

    0 is as before, 1 is perfect, below 0 is worse, for every metric. None where a score is undefined; `low` and `high`
    are nan where there is no interval.
    """
    before, after = entry["before"], entry["after"]
    if before is None or after is None or entry["difference"] is None:
        return None
    top = max(abs(before), abs(after))
    best = BEST.get(metric, (1.0 if top <= 1 else 100.0 if top <= 100 else top))
    best = best if entry["higher_is_better"] or metric in BEST else 0.0
    way = abs(best - before) or abs(after - before) or 1.0
    sign = 1 if entry["higher_is_better"] else -1
    low, high = (math.nan if v is None else sign * v / way for v in entry["interval"])
    return sign * entry["difference"] / way, min(low, high), max(low, high)
