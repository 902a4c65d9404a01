"""Which learning rate? The curve of the range test that `learning_rate: auto` makes (arXiv 1506.01186 §3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.results.evidence import Evidence, keep, weights
from lorakit.results.plots import bare, smooth
from lorakit.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette

QUESTION = "Which learning rate?"
LIMITS = ("It cannot tell which rate is best for the whole run: a search of settings does.",)


def from_record(folder: RunFolder) -> None:
    """Keeps the curve that training has noted, where there is one, for the report of these weights."""
    if (found := folder.record.get("range_test")) and folder.writable:
        headline = f"{found['chosen']:g}: {found['reason']}."
        made = Evidence(
            "learning_rate", headline, True, (), LIMITS, figures=found, weights=weights(folder)
        )
        keep(folder, made)


def draw(figures: Mapping[str, Any], colours: Palette) -> Figure:
    """Loss over learning rate, relative to where it began, and the rate that was taken."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    axes = figure.subplots()
    rates, losses = figures["rates"], figures["losses"]
    axes.plot(rates, losses, ".", color=colours.quiet)
    axes.plot(rates, smooth(losses, 4), color=colours.training)
    axes.axvline(figures["chosen"], color=colours.validation, label=f"taken: {figures['chosen']:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss / first loss of the same rows")
    axes.legend(frameon=False)
    bare(axes)
    return figure
