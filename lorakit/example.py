"""`Example`: one row of data and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One row. `fields` are the file's columns first, the schema's (`messages`, `text`, …) afterwards."""

    fields: dict[str, Any]
    file: str  # as given by the user, or the file inside a folder
    row: int  # line of a line-wise file, else the row's place in the file; from 1

    @property
    def where(self) -> str:
        """`relief.jsonl:12`"""
        return f"{self.file}:{self.row}"

    def with_fields(self, fields: dict[str, Any]) -> Example:
        return replace(self, fields=fields)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out, and why. Nothing vanishes: these go to `rejected.jsonl`."""

    file: str
    row: int
    reason: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.row}"
