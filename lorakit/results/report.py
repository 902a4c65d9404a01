"""What a run found, for people: `loss.png`, `report.md` and `report.html`, from the files of the run alone."""

from __future__ import annotations

import base64
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.files import atomic_write
from lorakit.common.text import label, markdown, printable
from lorakit.results import plots
from lorakit.results.evaluate import better
from lorakit.results.evidence import kept
from lorakit.results.plots import DARK, LIGHT, Palette
from lorakit.results.verdict import (
    MEANING,
    about_answers,
    evidence,
    interval,
    named,
    number,
    ordered,
    primary,
    short,
    signed,
    verdict,
)
from lorakit.runs.folder import Folder, read_lines

ASSETS = Path(__file__).parents[1] / "assets"
WRONG, RIGHT = 8, 4  # answers shown of each kind at least, where there are so many


def alarm(validations: Sequence[Mapping[str, Any]]) -> str:
    """A warning when the validation loss has turned upwards, else an empty string."""
    if len(validations) < 3:
        return ""
    low = min(validations, key=lambda v: v["validation_loss"])
    last = validations[-1]
    if last["update"] > low["update"] and last["validation_loss"] > 1.02 * low["validation_loss"]:
        return (
            f"Overfitting: the validation loss was lowest at update {low['update']} "
            f"({low['validation_loss']:.3f}) and ended at {last['validation_loss']:.3f}."
        )
    return ""


def limits(record: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the test rows cannot show: how small a difference, how far folds spread, what may have leaked."""
    name = primary(scores)
    entry, out = scores.get(name, {}), []
    if entry.get("groups", 0) > 1:
        out.append(
            f"The {entry['rows']} test rows are of {entry['groups']} groups, which are drawn whole for the interval: "
            "they count as so many pieces of evidence."
        )
    if entry and better(entry) is not None:  # else the headline says it
        out += [text for text in [evidence(name, entry)] if text]
    parts = [f["after"] for f in entry.get("folds", ()) if f["after"] is not None]
    if len(parts) > 1:
        out.append(
            f"{name.replace('_', ' ')} after training in {len(parts)} folds: {number(min(parts))} to "
            f"{number(max(parts))}, standard deviation {number(statistics.stdev(parts))}. The model kept here has "
            "seen all rows; the folds' models estimate it."
        )
    data = record.get("data", {}).get("lines", [])
    return out + [line for line in data if line.startswith("no group_by")]


def unit(record: Mapping[str, Any]) -> str:
    """What the loss is counted in: `target token`, or `row` where a row has a class."""
    task = record.get("data", {}).get("task", "chat")
    if task not in registry.names("tasks"):
        return "target token"
    return tasks.objective_of(task).UNIT.removesuffix("s")


def _labels(record: Mapping[str, Any]) -> bool:
    """Whether the task has classes."""
    task = record.get("data", {}).get("task", "chat")
    return task in registry.names("tasks") and tasks.objective_of(task).HEAD == "labels"


def loss_png(folder: Folder, path: Path | None = None) -> Path:
    """Two panels: the losses over the updates, and the improvement of every score with its interval."""
    path = path or folder / "loss.png"
    updates, validations = folder.history()
    scores, what = folder.scores, unit(folder.record)
    with atomic_write(path) as part:
        part.write_bytes(
            plots.png(lambda colours: plots.overview(updates, validations, scores, what, colours))
        )
    return path


def confusion(path: str | os.PathLike) -> Any:
    """Which class was taken for which, before and after, as a matplotlib figure; None where answers are no classes."""
    folder = Folder.of(path)
    answers = read_lines(folder / "answers.jsonl", "reference", "before", "after")
    return plots.confusion(answers, labels=_labels(folder.record))


def curve(path: str | os.PathLike) -> Any:
    """The losses of a run as an interactive plotly figure, with a PNG for pages that run nothing."""
    folder = Folder.of(path)
    return plots.interactive(*folder.history(), unit(folder.record))


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The table of scores as words, the most telling metric first; of a mixture, each file's behind it."""
    return [
        {
            "metric": name if file is None else f"{name}, {file}",
            "before": number(entry["before"]),
            "after": number(entry["after"]),
            "rows": str(entry["rows"]),
            "difference": signed(entry["difference"]),
            "interval": interval(entry["interval"]),
            "verdict": {True: "better", False: "worse", None: "open"}[better(entry)],
        }
        for name in ordered(scores)
        for file, entry in [(None, scores[name]), *scores[name].get("files", {}).items()]
    ]


def marks(
    answers: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    labels: bool = False,
) -> tuple[str, list[tuple[float, float]]]:
    """(metric, (before, after) of each row by that metric alone); ("", []) where answers were not scored.

    Right or wrong where answers can be that: of classes, and where at least one answer matched exactly.
    """
    metric = primary(scores) if about_answers(scores) else ""
    if labels:
        same = [[float(a[k] == a["reference"]) for k in ("before", "after")] for a in answers]
        return "accuracy", [(before, after) for before, after in same]
    gone = any(a[k] is None for a in answers for k in ("reference", "before", "after"))
    if gone or metric not in registry.names("metrics"):
        return "", []
    module, options = registry.load("metrics", metric), metrics.get(metric, {})
    if not {"answers", "labels"} & set(module.NEEDS):  # of pairs, probabilities or tokens
        return "", []
    sides = [
        module.rows([a["reference"] for a in answers], [a[k] for a in answers], **options)
        for k in ("before", "after")
    ]
    return metric, [
        (module.score(sides[0][i : i + 1]), module.score(sides[1][i : i + 1]))
        for i in range(len(answers))
    ]


def some_answers(folder: Folder) -> tuple[list[dict[str, Any]], str]:
    """(answers to show, the wrong or worst ones first, each marked; what is shown, in a sentence)."""
    record, scores = folder.record, folder.scores
    answers = read_lines(folder / "answers.jsonl", "prompt", "reference", "before", "after")
    answers = [a for a in answers if a["after"] is not None]
    metric, values = marks(answers, scores, record.get("metrics", {}), _labels(record))
    if not values:
        changed = sorted(answers, key=lambda a: a["before"] == a["after"])
        return changed[: WRONG + RIGHT], "The first rows whose answer changed."
    exact = metric in ("exact_match", "accuracy")
    sign = 1 if scores.get(metric, {}).get("higher_is_better", True) else -1

    def mark(value: float) -> str:
        return ("right" if value else "wrong") if exact else f"{named(metric)} {short(value)}"

    # The worst first; of equals those that were better before.
    order = sorted(range(len(answers)), key=lambda i: (sign * values[i][1], -sign * values[i][0]))
    bad = sum(not after for _, after in values) if exact else len(order)
    first = order[:bad][: max(WRONG, WRONG + RIGHT - (len(order) - bad))]
    last = order[bad:] if exact else order[len(first) :][-RIGHT:]
    chosen = [*first, *last[: WRONG + RIGHT - len(first)]]
    shown = [
        {**answers[i], "before_mark": mark(values[i][0]), "after_mark": mark(values[i][1])}
        for i in chosen
    ]
    if not exact:
        return shown, f"Of {len(answers)} test answers, the furthest from the expected ones first."
    if not bad:
        return shown, f"All {len(answers)} test answers are right."
    return shown, f"{bad} of {len(answers)} test answers are wrong; those come first."


def facts(folder: Folder) -> dict[str, str]:
    """What was trained, on what, how long."""
    record, updates = folder.record, folder.history()[0]
    peak, what, data = record.get("peak_memory", {}), unit(record), record.get("data", {})
    known = {
        "model": record.get("model"),
        "trained on from": _parent(record.get("parent")),
        "method": record.get("method"),
        "updates": len(updates),
        "trained parameters": f"{record['trained_parameters']:,} of {record['parameters']:,}"
        if "parameters" in record
        else None,
        f"{what}s trained": f"{record['target_tokens']:,}" if record.get("target_tokens") else None,
        "training time": f"{record['seconds']:.1f} s, {record['tokens_per_second']:,.0f} {what}s/s"
        if record.get("seconds")
        else None,
        "training time predicted after five updates": f"{record['seconds_predicted']:.1f} s"
        if record.get("seconds_predicted")
        else None,
        "peak memory": f"{peak['measured'] / 1e9:.2f} GB measured, {peak['predicted'] / 1e9:.2f} GB predicted"
        if peak
        else None,
        "adapter of update": record.get("adapter_from_update"),
        "mean characters of an answer": _lengths(folder),
        "machine": record.get("machine", {}).get("summary"),
        "data": data.get("file"),
        "SHA-256 of the data": data.get("sha256"),
        "SHA-256 of the base": record.get("base_sha256"),
    }
    return {k: v for k, v in known.items() if v not in (None, "")}


def _lengths(folder: Folder) -> str | None:
    """How long the answers to the test rows are; None where none were written."""
    answers = read_lines(folder / "answers.jsonl", "reference", "before", "after")
    if _labels(folder.record) or not answers or None in (v for a in answers for v in a.values()):
        return None
    means = (statistics.fmean(len(a[k]) for a in answers) for k in ("before", "after", "reference"))
    return "{:.1f} before, {:.1f} after, {:.1f} expected".format(*means)


def _parent(parent: dict[str, Any] | None) -> str | None:
    if not parent:
        return None
    return f"the run {parent['run']} ({parent['updates']} updates on {parent['model']})"


def context(folder: Folder) -> dict[str, Any]:
    """Everything a report says, as plain values."""
    record, scores = folder.record, folder.scores
    updates, validations = folder.history()
    kind, headline = verdict(scores, record.get("data", {}).get("task"))
    notes = [n for n in [alarm(validations), *limits(record, scores)] if n]
    if record["status"] == "done" and len(updates) != record.get("updates", len(updates)):
        notes.append(
            f"history.jsonl holds {len(updates):,} of the {record['updates']:,} updates: it was cut, and the curve "
            "is not whole."
        )
    if constant := scores.get(primary(scores), {}).get("most_frequent_answer"):
        less = "more" if constant["difference"] > 0 else "less"
        than = (
            f"{number(abs(constant['difference']))} {less} (95 % interval {interval(constant['interval'])})"
            if constant["difference"]
            else "the same"
        )
        notes.append(
            f"Always giving the most frequent training answer ({label(constant['answer'], 60)}) scores "
            f"{number(constant['score'])}; the tuned model scores {than}."
        )
    answers, answers_note = some_answers(folder)
    return {
        "name": folder.path.name,
        "status": record["status"],
        "kind": kind,
        "headline": headline,
        "notes": notes,
        "scores": score_rows(scores),
        "facts": facts(folder),
        "data": record.get("data", {}).get("lines", []),
        "choices": record.get("choices", {}),
        "proof": record.get("proof", {}),
        "error": record.get("error"),
        "answers": answers,
        "answers_note": answers_note,
        "versions": record.get("versions", {}),
        "beside": record.get("beside"),
        "evidence": [
            {"question": registry.load("evidence", e.name).QUESTION, "found": e}
            for e in kept(folder)
        ],
    }


def beside(
    path: str | os.PathLike, title: str, rows: list[tuple[str, str, str]], note: str
) -> Path:
    """Puts figures published elsewhere next to this run's into its report: rows of (what, published, this run's)."""
    Folder.of(path).note(beside={"title": title, "rows": [list(r) for r in rows], "note": note})
    return write(path)


def _pictures(folder: Folder) -> dict[str, dict[str, str]]:
    """Name -> the picture as base64, `light` and `dark`. Writes `confusion.png` where answers are classes."""
    updates, validations = folder.history()
    record, scores = folder.record, folder.scores
    answers = read_lines(folder / "answers.jsonl", "reference", "before", "after")
    what, labels = unit(record), _labels(record)
    draws: dict[str, Callable[[Palette], Any]] = {
        "losses": lambda colours: plots.losses(updates, validations, what, colours)
    }
    if scores:
        draws["improvements"] = lambda colours: plots.improvements(scores, colours)
    if plots.confusion(answers, labels=labels):
        draws["confused"] = lambda colours: plots.confusion(answers, labels=labels, colours=colours)
        with atomic_write(folder / "confusion.png") as part:
            part.write_bytes(plots.png(draws["confused"], dpi=120))
    for known in kept(folder):
        draw = partial(registry.load("evidence", known.name).draw, known.figures)
        draws[known.name] = draw
        with atomic_write(folder.evidence(known.name).with_suffix(".png")) as part:
            part.write_bytes(plots.png(draw, dpi=120))
    return {
        name: {
            side: base64.b64encode(plots.png(draw, colours)).decode()
            for side, colours in (("light", LIGHT), ("dark", DARK))
        }
        for name, draw in draws.items()
    }


def write(path: str | os.PathLike) -> Path:
    """`loss.png`, `report.md` and `report.html` of a run, from its files alone. Returns the page's path."""
    from jinja2 import Environment

    folder = Folder.of(path)
    loss_png(folder)
    pictures = _pictures(folder)
    values = {**context(folder), **pictures, "pictures": pictures, "meaning": MEANING}
    for name in ("report.md", "report.html"):
        page = Environment(autoescape=name.endswith("html"))
        page.filters.update(md=markdown, shown=printable, named=named)
        template = (ASSETS / f"{name}.jinja").read_text(encoding="utf-8")
        with atomic_write(folder / name) as part:
            text = page.from_string(template).render(values).lstrip()
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / "report.html"
