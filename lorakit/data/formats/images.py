"""A picture a file, in a folder of its class:

maize/Common_Rust/Corn_Common_Rust_6.jpg
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.schemas import PICTURES

SUFFIXES = PICTURES
MEDIUM = "image"  # beside a table these files are what its rows speak of, and no rows of their own


def read(path: str | Path, *, names: str | None = None) -> Iterator[Example | Rejected]:
    """One row: `image`, the file; `label`, the folder it is in. `names` finds more columns in the file's name:
    "{label}_{leaf}_{shot}" in rust_12_3.jpg."""
    yield row(Path(path), "image", names)


def row(path: Path, medium: str, names: str | None) -> Example | Rejected:
    """The row of a picture or a sound."""
    fields = {medium: str(path.absolute()), "label": path.absolute().parent.name}
    if names is not None:
        found = _pattern(names).fullmatch(path.stem)
        if not found:
            return Rejected(path.name, 1, f"the name is none of the form {names!r}")
        fields |= found.groupdict()
    return Example(fields, path.name, 1)


def _pattern(names: str) -> re.Pattern:
    """ "{digit}_{speaker}" as a regular expression. Raises `LorakitError` when it names no column."""
    parts = re.split(r"\{(\w+)\}", names)
    if len(parts) < 3:
        raise LorakitError(
            f"names={names!r} finds no column in a file's name; write e.g. '{{label}}_{{number}}'"
        )
    try:
        return re.compile(
            "".join(
                f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
            )
        )
    except re.error as error:
        raise LorakitError(f"names={names!r}: {error}") from None
