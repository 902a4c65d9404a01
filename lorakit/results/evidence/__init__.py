"""Evidence beyond the scores: one question a file, each answered with its error or by "cannot tell".

A file of this folder measures on finished runs, keeps an `Evidence` in the run's folder, and draws its picture; reports
show all that is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.runs.folder import RunFolder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.results.plots import Palette


@dataclass(frozen=True)
class Evidence:
    """The answer to one question about a run, for people and for programs."""

    name: str  # of the file that measured it
    headline: str  # the answer in a sentence, with its interval; or that it cannot be told, and what it would take
    told: bool  # whether it could be told
    sentences: Sequence[str] = ()  # what else was found
    limits: Sequence[str] = ()  # what it cannot tell
    table: Sequence[Sequence[str]] = ()  # lines of cells, the first one names the columns
    figures: Mapping[str, Any] = field(
        default_factory=dict
    )  # numbers, for the picture and for programs
    weights: Mapping[str, str] = field(
        default_factory=dict
    )  # SHA-256 of the saved files it is about

    def __str__(self) -> str:
        return "\n".join([self.headline, *self.sentences, *self.limits])


class EvidenceModule(Protocol):
    """A file of this folder."""

    QUESTION: str  # as people ask it

    def draw(self, figures: Mapping[str, Any], colours: Palette) -> Figure:
        """The picture of `Evidence.figures`."""


INTERFACE = EvidenceModule
ORDER = (
    "learning_rate",
    "forecast",
    "suspicious",
    "forgotten",
    "trust",
    "form",
)  # in which a report shows them


def keep(folder: RunFolder, evidence: Evidence) -> Evidence:
    """Writes it into the run's folder, where reports and `ask` find it."""
    write_json(folder.evidence(evidence.name), asdict(evidence))
    return evidence


def read(folder: RunFolder, name: str) -> Evidence | None:
    """What is kept of a question; None where nothing is, or where it is of weights that were saved before.

    Raises `LorakitError` when it is damaged.
    """
    path = folder.evidence(name)
    if not path.is_file():
        return None
    try:
        found = Evidence(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LorakitError(
            f"is damaged ({error})", where=path, cure="delete it, or measure it again"
        ) from None
    return found if found.weights == weights(folder) else None


def weights(folder: RunFolder) -> dict[str, str]:
    """SHA-256 of the saved adapter or model, by file."""
    files = folder.record.get("files", {})
    return {name: str(sha) for name, sha in files.items() if not name.startswith("rows/")}


def kept(folder: RunFolder) -> list[Evidence]:
    """All that is kept of a run, in the order of a report."""
    names = sorted(registry.names("evidence"), key=lambda n: (n not in ORDER, *_place(n)))
    return [found for name in names if (found := read(folder, name))]


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else 0, name)


def share(hits: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share by Clopper & Pearson (Biometrika 1934): it covers with at least `level`, however few rows.

    Assumes independent rows. (0, 1) for no rows.
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, rows - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 1, rows - hits) if hits < rows else 1.0
    return float(low), float(high)


def counted(hits: int, rows: int) -> str:
    """`12 of 60 (20 %, 95 % interval 11 to 32 %)`"""
    low, high = (100 * end for end in share(hits, rows))
    return f"{hits} of {rows} ({100 * hits / max(rows, 1):.0f} %, 95 % interval {low:.0f} to {high:.0f} %)"


def percent(share: float) -> str:
    """`82 %`"""
    return f"{100 * share:.0f} %"


def one_of_each(sources: Sequence[str]) -> np.ndarray:
    """Indices of the first row of each source: pieces of one text are no independent evidence."""
    return np.unique(np.asarray(sources), return_index=True)[1]
