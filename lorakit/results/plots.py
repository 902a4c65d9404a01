"""Every picture of results: losses, improvement, confusion, several runs side by side; light, and dark for pages."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.common.text import label
from lorakit.machine.packages import require
from lorakit.results.evaluate import better
from lorakit.results.verdict import change, improvement, named, ordered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lorakit.results.logs import Log

CLASSES = 20  # so many can be told apart in a picture
SPAN = 10  # updates that a smoothed loss is the mean of, at most
# One per run, when several are compared.
COLOURS = ("#2563eb", "#d97706", "#15803d", "#b91c1c", "#7c3aed", "#0e7490", "#be185d", "#4d7c0f")


@dataclass(frozen=True)
class Palette:
    """Colours of a picture, by what they mean."""

    ink: str
    quiet: str
    training: str
    validation: str
    better: str
    worse: str
    paper: str

    @property
    def settings(self) -> dict[Any, Any]:
        """matplotlib's own, so that axes and words have these colours."""
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        return dict.fromkeys(inked, self.ink) | dict.fromkeys(papered, self.paper)


LIGHT = Palette("#1f2933", "#8896a5", "#2563eb", "#d97706", "#15803d", "#b91c1c", "#ffffff")
DARK = Palette("#e6ebf0", "#9fb0c0", "#60a5fa", "#fbbf24", "#4ade80", "#f87171", "#12181f")
INK, QUIET, BLUE = LIGHT.ink, LIGHT.quiet, LIGHT.training
ORANGE, GREEN, RED = LIGHT.validation, LIGHT.better, LIGHT.worse


@contextlib.contextmanager
def styled(colours: Palette) -> Iterator[None]:
    """matplotlib in these colours; characters that its font lacks are drawn as boxes without a warning each."""
    import matplotlib

    with matplotlib.rc_context(colours.settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def png(draw: Callable[[Palette], Figure], colours: Palette = LIGHT, dpi: int = 130) -> bytes:
    """What `draw` draws, as a PNG."""
    buffer = io.BytesIO()
    with styled(colours):
        draw(colours).savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def written(text: object, length: int = 40) -> str:
    """Text of others for matplotlib: on one line, short, and no mathematics begins at a dollar sign."""
    return label(text, length).replace("$", r"\$")


def span(updates: int, gap: float = 1) -> float:
    """How many logged losses to smooth over: a twentieth of the run, at most `SPAN` updates, so that the curve of a
    short run does not lag behind it. `gap`: updates from one logged loss to the next."""
    return max(1.0, min(SPAN, updates * gap / 20) / max(gap, 1))


def smooth(values: Sequence[float], over: float | None = None) -> list[float]:
    """Exponential mean over about `over` values (`span` unless given), divided by the sum of its weights.

    The division corrects the bias towards the start (as Adam's, arXiv 1412.6980 §3). A value that is not finite stays
    as it is and weighs nothing.
    """
    weight, mean, norm, out = 1 - 1 / (over or span(len(values))), 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, norm = weight * mean + (1 - weight) * value, weight * norm + 1 - weight
        out.append(mean / norm if math.isfinite(value) else value)
    return out


def bare(axes: Axes) -> None:
    """Without the frame's upper and right line."""
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def scaled(axes: Axes, levels: Sequence[float], seen: Sequence[float]) -> None:
    """From zero; a loss that fell far says where it stands only on a log scale."""
    positive = [v for v in levels if v > 0 and math.isfinite(v)]
    if positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        top = max((v for v in seen if math.isfinite(v)), default=1.0)
        axes.set_ylim(0, 1.2 * top or 1.0)


def draw_losses(
    axes: Axes,
    updates: Sequence[Mapping[str, Any]],
    validations: Sequence[Mapping[str, Any]],
    unit: str = "target token",
    colours: Palette = LIGHT,
) -> None:
    """Training loss, raw and smoothed, and validation loss with its lowest point."""
    x, y = [u["update"] for u in updates], [u["loss"] for u in updates]
    axes.plot(x, y, color=colours.training, alpha=0.35, linewidth=1)
    axes.plot(x, smooth(y), color=colours.training, linewidth=2, label="training rows")
    vx, vy = [v["update"] for v in validations], [v["validation_loss"] for v in validations]
    if finite := [i for i, v in enumerate(vy) if math.isfinite(v)]:
        axes.plot(
            vx,
            vy,
            color=colours.validation,
            marker="o",
            markersize=4,
            linewidth=1.5,
            label="validation rows",
        )
        best = min(finite, key=vy.__getitem__)
        below = vy[best] > 0.7 * max(v for v in vy + y if math.isfinite(v))  # above is the legend
        axes.annotate(
            f"lowest {vy[best]:.3f}",
            (vx[best], vy[best]),
            xytext=(0, -16 if below else 12),
            textcoords="offset points",
            color=colours.validation,
            ha="right" if vx[best] > 0.7 * max(vx) else "left",
            fontsize=9,
        )
    axes.set_xlabel("update")
    axes.set_ylabel(f"loss (nats per {unit})")
    scaled(axes, smooth(y), y + vy)
    axes.legend(frameon=False, loc="upper right")
    bare(axes)


def draw_scores(
    axes: Axes, scores: Mapping[str, Mapping[str, Any]], colours: Palette = LIGHT
) -> None:
    """How much of the way to a perfect score each metric went, with its 95 % interval: to the right is better."""
    shown = [  # perplexity is the loss again
        (m, found)
        for m in reversed(ordered(scores))
        if (m != "perplexity" or "loss" not in scores)
        and (found := improvement(m, scores[m])) is not None
    ]
    for row, (metric, (value, low, high)) in enumerate(shown):
        entry = scores[metric]
        colour = {True: colours.better, False: colours.worse, None: colours.quiet}[better(entry)]
        low, high, value = (max(-1.0, min(1.0, v)) for v in (low, high, value))
        axes.plot([low, high], [row, row], color=colour, linewidth=4, solid_capstyle="butt")
        axes.plot(value, row, "o", color=colour, markersize=8)
        axes.annotate(
            written(change(metric, entry).removeprefix(named(metric)).strip()),
            (1.03, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
        )
    axes.axvline(0, color=colours.ink, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [written(named(m), 24) for m, _ in shown])
    axes.set_ylim(-0.6, max(len(shown), 1) - 0.4)
    worst = min([0.0, *(v for _, found in shown for v in found if math.isfinite(v))])
    axes.set_xlim(max(-1.08, min(-0.12, 1.1 * worst)), 1.05)
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):.0%}" if x >= 0 else f"−{abs(x):.0%}")
    axes.set_xlabel("better →   share of the way to a perfect score")
    rows = max((scores[m]["rows"] for m, _ in shown), default=0)
    axes.set_title(f"Improvement on {rows} test rows, with 95 % interval", fontsize=10, loc="left")
    axes.grid(alpha=0.2, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def losses(
    updates: Sequence[Mapping], validations: Sequence[Mapping], unit: str, colours: Palette = LIGHT
) -> Figure:
    """The curve alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    draw_losses(figure.subplots(), updates, validations, unit, colours)
    return figure


def improvements(scores: Mapping[str, Mapping[str, Any]], colours: Palette = LIGHT) -> Figure:
    """The scores alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 1.5 + 0.38 * len(scores)), layout="constrained")
    draw_scores(figure.subplots(), scores, colours)
    return figure


def overview(
    updates: Sequence[Mapping],
    validations: Sequence[Mapping],
    scores: Mapping[str, Mapping],
    unit: str,
    colours: Palette = LIGHT,
) -> Figure:
    """`loss.png`: the losses over the updates and, where there are scores, the improvement."""
    from matplotlib.figure import Figure

    if not scores:
        return losses(updates, validations, unit, colours)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    draw_losses(left, updates, validations, unit, colours)
    draw_scores(right, scores, colours)
    return figure


def confusion(
    answers: Sequence[Mapping[str, Any]], *, labels: bool, colours: Palette = LIGHT
) -> Figure | None:
    """Which class was taken for which, before and after; None where answers are no classes.

    Args:
        answers: rows with `reference`, `before` and `after`.
        labels: whether the task has classes. Else answers are classes where they come again and again.
        colours: of the picture.
    """
    from matplotlib.figure import Figure

    classes = sorted({a["reference"] for a in answers if a["reference"] is not None})
    if not 2 <= len(classes) <= (CLASSES if labels else min(CLASSES, len(answers) / 2)):
        return None
    given = {a[when] for a in answers for when in ("before", "after")} - {*classes}
    columns = [*classes, *(sorted(map(str, given)) if labels else ["other"] if given else [])]
    side = 1.6 + 0.42 * len(columns)
    figure = Figure(figsize=(2 * side + 1.6, side + 0.8), layout="constrained")
    for axes, when in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        draw_confusion(axes, answers, when, classes, columns, colours)
    return figure


def draw_confusion(
    axes: Axes,
    answers: Sequence[Mapping[str, Any]],
    when: str,
    classes: list[str],
    columns: list[str],
    colours: Palette = LIGHT,
) -> None:
    """A row for each class that is right, a column for each that was answered; what is no class is "other"."""
    from matplotlib.colors import LinearSegmentedColormap

    counts = Counter((a["reference"], a[when] if a[when] in columns else "other") for a in answers)
    table = [[counts[right, given] for given in columns] for right in classes]
    shares = [[n / max(1, sum(line)) for n in line] for line in table]
    fading = LinearSegmentedColormap.from_list("share", [colours.paper, colours.training])
    axes.imshow(shares, cmap=fading, vmin=0, vmax=1, aspect="equal")
    for y, line in enumerate(table):
        for x, n in enumerate(line):
            if n:
                ink = colours.paper if shares[y][x] > 0.5 else colours.ink
                axes.text(x, y, str(n), ha="center", va="center", color=ink, fontsize=9)
    names = [written(c, 18) for c in columns]
    axes.set_xticks(range(len(columns)), names, rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(len(classes)), [written(c, 18) for c in classes], fontsize=9)
    axes.set_xlabel(f"answered {when} training")
    if when == "before":
        axes.set_ylabel("right answer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def comparison(logs: Sequence[Log], names: Sequence[str]) -> Figure:
    """The losses of several runs over updates, and over tokens and seconds where two logs or more tell them."""
    from matplotlib.figure import Figure

    from lorakit.results.logs import AXES

    shared = [a for a in AXES if a == "update" or sum(bool(log.along(a)[0]) for log in logs) > 1]
    names, width = [written(n, 60) for n in names], max(6.5, 4.6 * len(shared))
    # At 9 points 11 letters fill an inch.
    beside = max(1, min(len(names), int(11 * width / (8 + max(map(len, names))))))
    figure = Figure(figsize=(width, 3.6 + 0.22 * -(-len(names) // beside)), layout="constrained")
    panels = figure.subplots(1, len(shared), squeeze=False, sharey=True)[0]
    for axes, axis in zip(panels, shared, strict=True):
        lines = [draw_log(axes, axis, log, COLOURS[i % len(COLOURS)]) for i, log in enumerate(logs)]
        counted = " / ".join(dict.fromkeys(log.counted for log in logs))
        axes.set_xlabel(counted if axis == "update" else AXES[axis])
        bare(axes)
        lacking = [log.name for log in logs if not log.along(axis)[0]]
        if lacking and axis != "update":
            title = written(f"not in the log of {', '.join(lacking)}", 60)
            axes.set_title(title, fontsize=8, color="gray")
        ends = [places[-1] for log in logs if (places := log.along(axis)[0]) and places[-1] > 0]
        if ends and max(ends) > 20 * min(ends):  # the short ones would be a stroke at the edge
            axes.set_xscale("symlog", linthresh=min(ends))
            axes.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("loss (nats per target token)")
    figure.suptitle("line: training rows, smoothed; dots: validation rows", fontsize=10)
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "ncols": beside}
    figure.legend(lines, names, loc="outside lower center", **style)
    return figure


def draw_log(axes: Axes, axis: str, log: Log, colour: str) -> Any:
    """One log: its training loss, raw and smoothed, and each series of validations. Returns the smoothed line."""
    places, raw = log.along(axis)
    axes.plot(places, raw, color=colour, alpha=0.25, linewidth=1)
    (line,) = axes.plot(places, log.smoothed(axis), color=colour, linewidth=1.8)
    for series in log.validations.values():
        at = [(u if axis == "update" else log.place(axis, u), loss) for u, loss in series]
        known = [(x, y) for x, y in at if x is not None]
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            "o--",
            color=colour,
            markersize=4,
            linewidth=1,
            alpha=1 if len(log.validations) == 1 else 0.6,
        )
    return line


def interactive(
    updates: Sequence[Mapping], validations: Sequence[Mapping], unit: str = "target token"
) -> Any:
    """The losses as a plotly figure that is a PNG where no plotly runs (GitHub, static HTML)."""
    require("plotly", purpose="an interactive curve")
    import plotly.graph_objects as go

    class Curve(go.Figure):
        _ipython_display_ = _repr_html_ = (
            None  # plotly's own, without the PNG; static pages would take them
        )

        def _repr_mimebundle_(self, *given: Any, **more: Any) -> dict[str, Any]:
            bundle = super()._repr_mimebundle_(*given, **more) or {}
            return {**bundle, "image/png": png(lambda c: losses(updates, validations, unit, c))}

    x, y = [u["update"] for u in updates], [u["loss"] for u in updates]
    figure = Curve()
    thin, thick = {"color": BLUE, "width": 1}, {"color": BLUE, "width": 2}
    figure.add_scatter(x=x, y=y, name="training, each update", line=thin, opacity=0.35)
    figure.add_scatter(x=x, y=smooth(y), name="training, smoothed", line=thick)
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
        yaxis_title=f"loss (nats per {unit})",
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": 1.1},
    )
    figure.update_yaxes(rangemode="tozero")
    return figure
