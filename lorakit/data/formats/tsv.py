"""Tab-separated values (https://www.iana.org/assignments/media-types/text/tab-separated-values):

The tap runs brown since the storm	water

A quote that encloses no whole cell is data; quotes as Excel writes them, around line ends too, are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorakit.data.example import Example, Rejected
from lorakit.data.formats import csv

SUFFIXES = (".tsv", ".tab")


def read(path: str | Path, *, header: bool | None = None) -> Iterator[Example | Rejected]:
    """See `csv.read`, with a tab between cells."""
    return csv.read(path, delimiter="\t", header=header)
