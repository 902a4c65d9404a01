"""A recording a file; its words in a text file of the same name beside it, or in the name itself:

recordings/7_jackson_32.wav
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import images
from lorakit.data.schemas import SOUNDS

SUFFIXES = SOUNDS
MEDIUM = "audio"  # see `formats.images`


def read(path: str | Path, *, names: str | None = None) -> Iterator[Example | Rejected]:
    """One row: `audio`, the file; `label`, the folder it is in; `text`, what stands in NAME.txt beside it. `names`
    finds more columns in the file's name: "{digit}_{speaker}_{take}" in 7_jackson_32.wav."""
    path = Path(path)
    row = images.row(path, "audio", names)
    words = path.with_suffix(".txt")
    if isinstance(row, Example) and words.is_file():
        try:
            row.fields.setdefault("text", words.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise LorakitError(f"{words}: cannot be read as text ({error})") from None
    yield row
