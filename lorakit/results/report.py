"""What a run found, for people: `loss.png`, `report.md`, `report.html`, and an interactive curve for notebooks."""

from __future__ import annotations

import base64
import math
import os
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.files import whole
from lorakit.results.evaluate import better
from lorakit.runs.folder import Folder, read_lines

INK, QUIET, BLUE, ORANGE, GREEN, RED = (
    "#1f2933",
    "#8896a5",
    "#2563eb",
    "#d97706",
    "#15803d",
    "#b91c1c",
)
CLASSES = 20  # so many can be told apart in a picture
PRIMARY = (
    "exact_match",
    "accuracy",
    "f1",
    "roc_auc",
    "bleu",
    "chrf",
    "rouge",
    "wer",
    "cer",
    "token_accuracy",
    "loss",
)


def smooth(values: list[float], span: int = 10) -> list[float]:
    """Exponential mean over about `span` updates, corrected for its start."""
    weight, mean, norm, out = 1 - 1 / span, 0.0, 0.0, []
    for value in values:
        mean, norm = weight * mean + (1 - weight) * value, weight * norm + 1 - weight
        out.append(mean / norm)
    return out


def primary(scores: dict[str, dict]) -> str:
    """The metric that the headline is about: the most telling one that was scored.

    Exact match of free text is 0 before and after and says nothing; the loss speaks then.
    """
    if (
        not any(scores.get("exact_match", {}).get(k) for k in ("before", "after"))
        and "loss" in scores
    ):
        return "loss" if "exact_match" in scores else next(m for m in PRIMARY if m in scores)
    return next((m for m in PRIMARY if m in scores), next(iter(scores), ""))


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"
    return f"{value:.1e}" if value and abs(value) < 0.001 else f"{value:.3f}"


def signed(value: float | None) -> str:
    return "–" if value is None else ("+" if value >= 0 else "−") + number(abs(value))


def interval(pair: list[float | None]) -> str:
    return "none" if pair == [None, None] else f"{signed(pair[0])} to {signed(pair[1])}"


def verdict(scores: dict[str, dict]) -> tuple[str, str]:
    """(better | worse | open, one sentence). Says how little few rows prove."""
    name = primary(scores)
    if not name:
        return "open", "Nothing was scored: there were no test rows."
    s = scores[name]
    words = (
        f"{name.replace('_', ' ')} on {s['rows']} test rows went from {number(s['before'])} to {number(s['after'])} "
        f"({signed(s['difference'])}, 95 % interval {interval(s['interval'])})."
    )
    direction = better(s)
    if direction is None:
        low, high = s["interval"]
        shown = (
            " They are all of one group, one piece of evidence, which has no interval: hold out several groups."
            if s.get("groups") == 1
            else ""
        )
        if low is not None and high is not None:
            shown = (
                f" With {s['rows']} rows a difference below about {number((high - low) / 2)} cannot be seen."
                if high > low
                else f" All {s['rows']} rows agree: of what happens to fewer than one row in "
                f"{max(1, s['rows'] // 3)} they say nothing (rule of three)."
            )
        return "open", f"No difference is shown: {words}{shown}"
    return ("better", f"Better: {words}") if direction else ("worse", f"Worse: {words}")


def alarm(validations: list[dict]) -> str:
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


def limits(record: dict, scores: dict[str, dict]) -> list[str]:
    """What the test rows cannot show: how small a difference, how far folds spread, what may have leaked."""
    out, name = [], primary(scores)
    if name and scores[name].get("groups", 0) > 1:
        out.append(
            f"The {scores[name]['rows']} test rows are of {scores[name]['groups']} groups, which are drawn whole "
            "for the interval: they count as so many pieces of evidence."
        )
    if name and None not in scores[name]["interval"] and better(scores[name]) is not None:
        low, high = scores[name]["interval"]
        if high > low:
            out.append(
                f"With {scores[name]['rows']} test rows a difference below about {number((high - low) / 2)} "
                "could not have been seen."
            )
    parts = [f["after"] for f in scores.get(name, {}).get("folds", ()) if f["after"] is not None]
    if len(parts) > 1:
        spread = statistics.stdev(parts)
        out.append(
            f"{name.replace('_', ' ')} after training in {len(parts)} folds: {number(min(parts))} to "
            f"{number(max(parts))}, standard deviation {number(spread)}. The model kept here has seen all rows; "
            "the folds' models estimate it."
        )
    return out + [
        line for line in record.get("data", {}).get("lines", []) if line.startswith("no group_by")
    ]


def loss_png(folder: Folder, path: Path | None = None) -> Path:
    """Two panels: the losses over the updates, and every score before and after with its interval."""
    from matplotlib.figure import Figure

    path = path or folder / "loss.png"
    updates, validations = folder.history()
    scores = folder.scores
    figure = Figure(figsize=(11, 4.2) if scores else (7, 4.2), layout="constrained")
    left, *right = figure.subplots(
        1, 2 if scores else 1, squeeze=False, width_ratios=[1.35, 1] if scores else None
    )[0]
    draw_losses(left, updates, validations, unit(folder.record))
    if scores:
        draw_scores(right[0], scores)
    with whole(path) as part:
        figure.savefig(part, dpi=130, format="png")
    return path


def unit(record: dict) -> str:
    """What the loss is counted in: `target token`, or `row` where a row has a class."""
    task = record.get("data", {}).get("task", "chat")
    return (
        tasks.objective_of(task).UNIT.removesuffix("s")
        if task in registry.names("tasks")
        else "target token"
    )


def draw_losses(
    axes: Any, updates: list[dict], validations: list[dict], unit: str = "target token"
) -> None:
    """Training loss, raw and smoothed, and validation loss with its lowest point."""
    x, y = [u["update"] for u in updates], [u["loss"] for u in updates]
    axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(x, smooth(y), color=BLUE, linewidth=2, label="training rows")
    if validations:
        vx, vy = [v["update"] for v in validations], [v["validation_loss"] for v in validations]
        axes.plot(
            vx, vy, color=ORANGE, marker="o", markersize=4, linewidth=1.5, label="validation rows"
        )
        best = min(range(len(vy)), key=vy.__getitem__)
        below = vy[best] > 0.7 * max(vy + y)  # above stands the legend
        axes.annotate(
            f"lowest {vy[best]:.3f}",
            (vx[best], vy[best]),
            xytext=(0, -16 if below else 12),
            textcoords="offset points",
            color=ORANGE,
            ha="right" if vx[best] > 0.7 * max(vx) else "left",
            fontsize=9,
        )
    axes.set_xlabel("update")
    axes.set_ylabel(f"loss (nats per {unit})")
    levels = [v for v in smooth(y) if v > 0]
    if levels and max(levels) > 20 * min(
        levels
    ):  # a loss that fell far says where it stands only on a log scale
        axes.set_yscale("log")
    else:
        seen = y + [v["validation_loss"] for v in validations]
        axes.set_ylim(0, 1.2 * max((v for v in seen if math.isfinite(v)), default=1.0) or 1.0)
    axes.legend(frameon=False, loc="upper right")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def draw_scores(axes: Any, scores: dict[str, dict]) -> None:
    """Differences on a common scale: each interval divided by the larger of the two scores it compares."""
    names = [n for n in scores if scores[n]["difference"] is not None]
    for row, name in enumerate(reversed(names)):
        s = scores[name]
        scale = max(abs(s["before"]), abs(s["after"])) or 1.0
        colour = {True: GREEN, False: RED, None: QUIET}[better(s)]
        low, high = (v / scale if v is not None else math.nan for v in s["interval"])
        axes.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(s["difference"] / scale, row, "o", color=colour, markersize=7)
        axes.annotate(
            f"{number(s['before'])} → {number(s['after'])}",
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in reversed(names)])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(-1.05, 1.05)
    axes.set_xlabel("after − before, relative, with 95 % interval")
    rows = {scores[n]["rows"] for n in names}
    axes.set_title(f"{max(rows)} test rows" if rows else "", fontsize=10, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def confusion(path: str | os.PathLike) -> Any:
    """Which class was taken for which, before and after, as a matplotlib figure; None where answers are no classes."""
    from matplotlib.figure import Figure

    folder = Folder.of(path)
    answers = read_lines(folder / "answers.jsonl", "reference", "before", "after")
    classes = sorted({a["reference"] for a in answers if a["reference"] is not None})
    # Of a classifier every answer is a class; else they are where they come again and again.
    task = folder.record.get("data", {}).get("task", "chat")
    sure = tasks.objective_of(task).HEAD == "labels"
    if not 2 <= len(classes) <= (CLASSES if sure else min(CLASSES, len(answers) / 2)):
        return None
    given = {a[when] for a in answers for when in ("before", "after")} - {*classes}
    columns = [*classes, *(sorted(given) if sure else ["other"] if given else [])]
    side = 1.6 + 0.42 * len(columns)
    figure = Figure(figsize=(2 * side + 1.6, side + 0.8), layout="constrained")
    for axes, when in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        draw_confusion(axes, answers, when, classes, columns)
    return figure


def draw_confusion(
    axes: Any, answers: list[dict], when: str, classes: list[str], columns: list[str]
) -> None:
    """A row for each class that is right, a column for each that was answered; what is no class is "other"."""
    counts = Counter((a["reference"], a[when] if a[when] in columns else "other") for a in answers)
    table = [[counts[right, given] for given in columns] for right in classes]
    shares = [[n / max(1, sum(line)) for n in line] for line in table]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for y, line in enumerate(table):
        for x, n in enumerate(line):
            if n:
                axes.text(
                    x,
                    y,
                    n,
                    ha="center",
                    va="center",
                    color="white" if shares[y][x] > 0.5 else INK,
                    fontsize=9,
                )
    axes.set_xticks(
        range(len(columns)), [c[:18] for c in columns], rotation=40, ha="right", fontsize=9
    )
    axes.set_yticks(range(len(classes)), [c[:18] for c in classes], fontsize=9)
    axes.set_xlabel(f"answered {when} training")
    if when == "before":
        axes.set_ylabel("right")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def curve(path: str | os.PathLike) -> Any:
    """The losses of a run as an interactive plotly figure."""
    import plotly.graph_objects as go

    updates, validations = Folder.of(path).history()
    x, y = [u["update"] for u in updates], [u["loss"] for u in updates]
    figure = go.Figure()
    figure.add_scatter(
        x=x, y=y, name="training, each update", line={"color": BLUE, "width": 1}, opacity=0.3
    )
    figure.add_scatter(
        x=x, y=smooth(y), name="training, smoothed", line={"color": BLUE, "width": 2}
    )
    if validations:
        figure.add_scatter(
            x=[v["update"] for v in validations],
            y=[v["validation_loss"] for v in validations],
            name="validation",
            mode="lines+markers",
            line={"color": ORANGE},
        )
    figure.update_layout(
        xaxis_title="update",
        yaxis_title="loss (nats per target token)",
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": 1.1},
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def score_rows(scores: dict[str, dict]) -> list[dict[str, str]]:
    """The table of scores as words, the headline's metric first."""
    order = sorted(scores, key=lambda n: PRIMARY.index(n) if n in PRIMARY else len(PRIMARY))
    return [
        {
            "metric": n,
            "before": number(s["before"]),
            "after": number(s["after"]),
            "rows": str(s["rows"]),
            "difference": signed(s["difference"]),
            "interval": interval(s["interval"]),
            "verdict": {True: "better", False: "worse", None: "open"}[better(s)],
        }
        for n in order
        for s in [scores[n]]
    ]


def context(folder: Folder) -> dict[str, Any]:
    """Everything a report says, as plain values."""
    record, scores = folder.record, folder.scores
    updates, validations = folder.history()
    kind, headline = verdict(scores)
    name = primary(scores)
    constant = scores.get(name, {}).get("most_frequent_answer")
    notes = [n for n in [alarm(validations), *limits(record, scores)] if n]
    if constant:
        notes.append(
            f"Always giving the most frequent training answer ({constant['answer'][:60]!r}) scores "
            f"{number(constant['score'])}; the tuned model is {signed(constant['difference'])} from that "
            f"(95 % interval {interval(constant['interval'])})."
        )
    peak, what = record.get("peak_memory", {}), unit(record)
    facts = {
        "model": record.get("model"),
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
        "machine": record.get("machine", {}).get("summary"),
        "data": record.get("data", {}).get("file"),
        "SHA-256 of the data": record.get("data", {}).get("sha256"),
        "SHA-256 of the base": record.get("base_sha256"),
    }
    return {
        "name": folder.path.name,
        "status": record["status"],
        "kind": kind,
        "headline": headline,
        "notes": notes,
        "scores": score_rows(scores),
        "facts": {k: v for k, v in facts.items() if v not in (None, "")},
        "data": record.get("data", {}).get("lines", []),
        "choices": record.get("choices", {}),
        "proof": record.get("proof", {}),
        "error": record.get("error"),
        "answers": sorted(
            read_lines(folder / "answers.jsonl", "before", "after"),
            key=lambda a: a["before"] == a["after"],
        )[:12],
        "versions": record.get("versions", {}),
        "beside": record.get("beside"),
    }


def beside(
    path: str | os.PathLike, title: str, rows: list[tuple[str, str, str]], note: str
) -> Path:
    """Puts figures published elsewhere next to this run's into its report: rows of (what, published, this run's)."""
    Folder.of(path).note(beside={"title": title, "rows": [list(r) for r in rows], "note": note})
    return write(path)


MARKDOWN = """# {{ name }}: {{ status }}

**{{ headline }}**
{% for n in notes %}
{{ n }}
{% endfor %}{% if error %}
> {{ error }}
{% endif %}
![losses and scores](loss.png)
{% if confused %}
![which class was taken for which](confusion.png)
{% endif %}{% if scores %}
| metric | before | after | difference | 95 % interval | rows |
|---|---|---|---|---|---|
{% for s in scores %}| {{ s.metric }} | {{ s.before }} | {{ s.after }} | {{ s.difference }} | {{ s.interval }} | {{ s.rows }} |
{% endfor %}{% endif %}{% if proof %}
## Proof
{% for k, v in proof.items() %}
- {{ k }}: {{ v }}{% endfor %}
{% endif %}{% if beside %}
## {{ beside.title }}

| | published | this run |
|---|---|---|
{% for r in beside.rows %}| {{ r[0] }} | {{ r[1] }} | {{ r[2] }} |
{% endfor %}
{{ beside.note }}
{% endif %}
## Facts
{% for k, v in facts.items() %}
- {{ k }}: {{ v }}{% endfor %}

## Data
{% for line in data %}
- {{ line }}{% endfor %}

## Choices
{% for k, v in choices.items() %}
- {{ k }} = {{ v[0] }}: {{ v[1] }}{% endfor %}
"""

HTML = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ name }}: {{ kind }}</title><style>
:root{color-scheme:light dark;--ink:#1f2933;--quiet:#5c6b7a;--line:#d9e0e7;--paper:#fff;--soft:#f5f7fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--quiet:#9fb0c0;--line:#33414e;--paper:#12181f;--soft:#1a222b}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}
.headline{font-size:1.25rem;border-left:.35rem solid var(--c);padding:.6rem 1rem;margin:1rem 0;background:var(--soft)}
.better{--c:#15803d}.worse{--c:#b91c1c}.open{--c:#8896a5}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--quiet);font-weight:600}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.scroll{overflow-x:auto}img{max-width:100%;background:#fff;border-radius:.3rem}small,.quiet{color:var(--quiet)}
code{font-size:.9em;overflow-wrap:anywhere}.status{float:right;color:var(--quiet)}
td.t{white-space:pre-wrap;overflow-wrap:anywhere;max-width:18rem}</style>
<span class="status">{{ status }}</span><h1>{{ name }}</h1>
<p class="headline {{ kind }}">{{ headline }}</p>
{% for n in notes %}<p>{{ n }}</p>{% endfor %}{% if error %}<p class="headline worse">{{ error }}</p>{% endif %}
<img alt="losses over the updates; scores before and after with intervals" src="data:image/png;base64,{{ png }}">
{% if confused %}<h2>Which class was taken for which</h2><img alt="confusion matrix before and after training" src="data:image/png;base64,{{ confused }}">{% endif %}
{% if scores %}<h2>Scores on rows that training never saw</h2><div class="scroll"><table>
<tr><th>metric<th>before<th>after<th>difference<th>95 % interval<th>rows<th>
{% for s in scores %}<tr><td>{{ s.metric }}<td class="n">{{ s.before }}<td class="n">{{ s.after }}<td class="n">{{ s.difference }}<td class="n">{{ s.interval }}<td class="n">{{ s.rows }}<td>{{ s.verdict }}{% endfor %}</table></div>{% endif %}
{% if answers %}<h2>Answers before and after</h2><div class="scroll"><table>
<tr><th>prompt<th>reference<th>before<th>after{% for a in answers %}
<tr><td class="t">{{ a.prompt }}<td class="t">{{ a.reference }}<td class="t">{{ a.before }}<td class="t">{{ a.after }}{% endfor %}</table></div>
<p><small>The first rows whose answer changed; all of them are in answers.jsonl.</small></p>{% endif %}
{% if proof %}<h2>Proof</h2><table>{% for k, v in proof.items() %}<tr><td>{{ k }}<td>{{ v }}{% endfor %}</table>{% endif %}
{% if beside %}<h2>{{ beside.title }}</h2><div class="scroll"><table><tr><th><th>published<th>this run
{% for r in beside.rows %}<tr><td>{{ r[0] }}<td class="n">{{ r[1] }}<td class="n">{{ r[2] }}{% endfor %}</table></div>
<p>{{ beside.note }}</p>{% endif %}
<h2>Facts</h2><table>{% for k, v in facts.items() %}<tr><td class="quiet">{{ k }}<td><code>{{ v }}</code>{% endfor %}</table>
<h2>Data</h2><ul>{% for line in data %}<li>{{ line }}{% endfor %}</ul>
<h2>Choices, each with its reason</h2><table>{% for k, v in choices.items() %}<tr><td>{{ k }}<td><code>{{ v[0] }}</code><td>{{ v[1] }}{% endfor %}</table>
<p><small>{% for k, v in versions.items() %}{{ k }} {{ v }}{% if not loop.last %} · {% endif %}{% endfor %}</small></p></html>
"""


def confusion_png(folder: Folder) -> Path | None:
    """`confusion.png`, where answers are classes."""
    figure = confusion(folder.path)
    if figure is None:
        return None
    with whole(folder / "confusion.png") as part:
        figure.savefig(part, dpi=120, format="png")
    return folder / "confusion.png"


def write(path: str | os.PathLike) -> Path:
    """`loss.png`, `report.md` and `report.html` of a run, from its files alone. Returns the page's path."""
    from jinja2 import Environment

    folder = Folder.of(path)
    pictures = {"png": loss_png(folder), "confused": confusion_png(folder)}
    values = context(folder) | {
        k: base64.b64encode(p.read_bytes()).decode() for k, p in pictures.items() if p
    }
    for name, template, escape in (("report.md", MARKDOWN, False), ("report.html", HTML, True)):
        text = Environment(autoescape=escape).from_string(template).render(values)
        with whole(folder / name) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / "report.html"
