"""What was found in the data of a run, for the notebook, `lorakit check` and the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from lorakit.data.example import Rejected

LISTED = 5  # names in a line


def listed(names: Iterable[str], quoted: bool = True) -> str:
    """The first five names, and how many more there are."""
    shown = [repr(n) if quoted else n for n in names]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return ", ".join(shown[:LISTED]) + more


@dataclass
class DataReport:
    """What was found in the data, for the notebook, `lorakit check` and the record."""

    file: str
    format: str = ""
    schema: str = ""
    reason: str = ""  # why this schema
    rows: int = 0  # found in the file
    rejected: list[Rejected] = field(default_factory=list)
    near_duplicates: int = 0  # rows that resemble an earlier one
    sets: dict[str, int] = field(default_factory=dict)  # examples per set
    sha256: str = ""
    notes: list[str] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)  # column -> the schema's name for it
    unused: list[str] = field(default_factory=list)  # columns that nothing is made of
    classes: list[str] = field(default_factory=list)  # their order, where the data say it

    def lines(self) -> list[str]:
        """The report as plain lines."""
        out = [f"{self.file}: {self.rows} rows, {self.format}; {self.reason}"]
        if self.unused:
            out.append(f"not used: {listed(self.unused)}")
        if self.rejected:
            out.append(
                f"{len(self.rejected)} left out, the first: {self.rejected[0].where}: {self.rejected[0].reason}"
            )
        if self.near_duplicates:
            out.append(
                f"{self.near_duplicates} rows nearly repeat another, or ask the same, and stay in its set"
            )
        if self.sets:
            out.append(", ".join(f"{n} {name}" for name, n in self.sets.items()))
        return out + self.notes

    def __str__(self) -> str:
        return "\n".join(self.lines())


def shown(rows: Iterable[Any], words: str) -> Iterable[Any]:
    """With a progress bar, once it takes long."""
    return tqdm(
        rows, desc=words, unit=" rows", unit_scale=True, delay=3, mininterval=1, leave=False
    )
