"""JSON Lines, one object a line (https://jsonlines.org):

{"prompt": "How much water does a person need a day?", "completion": "At least 15 litres."}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.data.example import Example, Rejected
from lorakit.data.formats import flaw, numbered, text

SUFFIXES = (".jsonl", ".ndjson")


def read(path: str | Path) -> Iterator[Example | Rejected]:
    """Rows are numbered by line. Blank lines are passed over."""
    name = Path(path).name
    # Only "\n" ends a line here: U+2028 and U+0085 are legal inside a JSON string.
    with text(path) as file:
        for number, line in numbered(
            file, path, "one object a line? A JSON array belongs into a file named .json"
        ):
            if not line.strip():
                continue
            if reason := flaw(line):
                yield Rejected(name, number, reason)
                continue
            try:
                fields = json.loads(line.rstrip("\r\n").removesuffix(","))
            except json.JSONDecodeError as error:
                yield Rejected(name, number, f"broken JSON: {error.msg} (column {error.colno})")
            except RecursionError:
                yield Rejected(name, number, "broken JSON: nested too deeply")
            except ValueError as error:  # a number of more than 4,300 digits
                yield Rejected(name, number, f"broken JSON: {error}")
            else:
                yield row_of(fields, name, number)


def row_of(value: Any, file: str, number: int) -> Example | Rejected:
    """One element of JSON: an object, or a list of turns, which becomes `messages`."""
    if isinstance(value, dict):
        return Example(value, file, number)
    turns = isinstance(value, list) and value and all(isinstance(t, dict) for t in value)
    if turns and all({"role", "from"} & t.keys() for t in value):
        return Example({"messages": value}, file, number)
    return Rejected(file, number, f"expected an object {{…}}, found {type(value).__name__}")
