"""Comma-separated values (https://www.rfc-editor.org/rfc/rfc4180), also with semicolons, tabs or bars between cells.

prompt,completion
"How much water, at least, does a person need a day?",15 litres.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import FIELD, flaw, numbered, text

SUFFIXES = (".csv",)
DELIMITERS = "\t;|,"  # of equals the first: commas also stand in prose and in decimal numbers
RECORDS, SAMPLE = (
    100,
    256 * 1024,
)  # the dialect is found over so many records, in so many characters
NAME = 64  # characters; what is longer is no column's name
DOUBLE = 'inside quotes a quote is written twice: ""'

Cells = list[str] | None  # None: the quotes are wrong


def read(
    path: str | Path, *, delimiter: str | None = None, header: bool | None = None
) -> Iterator[Example | Rejected]:
    """Every cell is text. Rows are numbered by the line they begin on; empty lines are passed over.

    The first record names the columns unless a cell of it is empty, a number or longer than 64 characters; then they
    are "1", "2", …; `header` says it outright. Between tabs, a quote that does not enclose a whole cell is data.
    """
    path = Path(path)
    _check(path, delimiter, header)
    csv.field_size_limit(
        max(csv.field_size_limit(), 2 * FIELD)
    )  # the whole process has but one: never lowered
    with text(path, newline="") as file:  # csv finds the line ends itself: some stand inside a cell
        lines = (line for _, line in numbered(file, path, f"is a quote never closed? {DOUBLE}"))
        start = list(_start(lines))
        passed, delimiter = _preamble(start, delimiter)
        start = start[passed:]
        dialect, sample = dialect_of(start, delimiter)
        named = _names(sample, header, path)
        width = _width(sample) or "".join(start[:1]).count(dialect["delimiter"]) + 1
        names = named or [str(column) for column in range(1, width + 1)]
        records = _records(_Lines(chain(start, lines), passed), dialect, len(names), path)
        for row, cells in islice(records, bool(named), None):
            if cells is not None and not any(cells[len(names) :]):
                cells = cells[: len(names)]  # delimiters at the end of a line
            if cells is None:
                yield Rejected(path.name, row, f"a quote in the middle of a quoted cell; {DOUBLE}")
            elif len(cells) != len(names):
                yield Rejected(path.name, row, f"expected {len(names)} cells, found {len(cells)}")
            elif reason := flaw(dialect["delimiter"].join(cells)):
                yield Rejected(path.name, row, reason)
            else:
                yield Example(dict(zip(names, cells)), path.name, row)


def _check(path: Path, delimiter: Any, header: Any) -> None:
    if delimiter is not None and (
        not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n '
    ):
        raise LorakitError(
            f"{path}: delimiter={delimiter!r} is not one character such as ',' or ';'"
        )
    if header is not None and not isinstance(header, bool):
        raise LorakitError(f"{path}: header={header!r} is neither true nor false")


# What stands before the header

SEP = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
TITLES = 5  # lines at most
COMMON = {*"prompt completion question answer text label instruction input output response".split()}


def _preamble(start: list[str], delimiter: str | None) -> tuple[int, str | None]:
    """(lines before the header, the delimiter): Excel's `sep=;`, and titles above a table."""
    passed = 0
    if start and (found := SEP.fullmatch(start[0])):
        passed, delimiter = 1, delimiter or found[1]
    for titles in range(1, min(TITLES, len(start) - passed - 2) + 1):
        line = start[passed + titles - 1].strip("\r\n" + (delimiter or DELIMITERS) + " ")
        if any(one in line for one in delimiter or DELIMITERS) or '"' in line:
            break
        rest = start[passed + titles :]
        _, sample = dialect_of(rest, delimiter)
        named = [cell.strip() for cell in (sample[0] if sample else None) or ()]
        while named and not named[-1]:
            named.pop()  # delimiters at the end of every line
        above = start[passed : passed + titles]
        apart = any(not line.strip() or line.strip("\r\n")[-1:] in DELIMITERS for line in above)
        if named and regularity(sample) == 1 and not any(map(_is_data, named)):
            known = {name.lower() for name in named} & COMMON
            if len(sample) > 1 and (apart or len(known) > 1):
                return passed + titles, delimiter
    return passed, delimiter


# The dialect, from the first records


def _start(lines: Iterator[str]) -> Iterator[str]:
    size = 0
    while size < SAMPLE and (line := next(lines, "")):
        size += len(line)
        yield line


def dialect_of(start: list[str], delimiter: str | None) -> tuple[dict[str, Any], list[Cells]]:
    """What splits most records into equally many cells, two or more, and the records so split.

    A file that nothing splits has one column.
    """
    tries = []
    for space in (False, True):  # whether a blank follows each delimiter
        for one in delimiter or DELIMITERS:
            dialect = {"delimiter": one, "skipinitialspace": space}
            tries.append((dialect, _sample(start, dialect)))
    return max(tries, key=lambda found: regularity(found[1]))


def _sample(start: list[str], dialect: dict[str, Any]) -> list[Cells]:
    found: list[Cells] = []
    reader = csv.reader(start, strict=True, **dialect)
    while len(found) < RECORDS:
        try:
            found.append(next(reader))
        except StopIteration:
            break
        except csv.Error:
            found.append(None)
    return [cells for cells in found if not _blank(cells)]


def _blank(cells: Cells) -> bool:
    return cells is not None and len(cells) < 2 and not "".join(cells).strip()


def _width(sample: list[Cells]) -> int:
    """The commonest number of cells of a record."""
    widths = Counter(len(cells) for cells in sample if cells)
    return widths.most_common(1)[0][0] if widths else 0


def regularity(sample: list[Cells]) -> float:
    """The share of records with the commonest number of cells; 0 when that, or the first record's, is 1."""
    width = _width(sample)
    if width < 2 or (sample[0] and len(sample[0]) < 2):
        return 0.0
    return sum(len(cells or ()) == width for cells in sample) / len(sample)


def _names(sample: list[Cells], header: bool | None, path: Path) -> list[str]:
    """What the columns are called by the first record; nothing when it is data."""
    first, second = [*sample, None, None][:2]
    names = [name.strip() for name in first or ()]
    while len(names) > 1 and not names[-1] and _blank_column(sample, len(names) - 1):
        names.pop()  # delimiters at the end of every line
    if names and not names[0] and all(names[1:]) and second and second[0].isdecimal():
        names[0] = "Unnamed: 0"  # pandas writes row numbers, and calls them so when it reads them
    if header is False or (header is None and any(map(_is_data, names))):
        return []
    again = [name for name, count in Counter(names).items() if count > 1 and name]
    if again or "" in names:
        wrong = (
            f"'{again[0]}' stands twice" if again else f"column {names.index('') + 1} has no name"
        )
        raise LorakitError(
            f"{path}: the header is unusable: {wrong}; name each column once. Is the first record "
            "data? Then set header: false"
        )
    if reason := flaw(" ".join(names)):
        raise LorakitError(f"{path}: the header is {reason}")
    return names


def _blank_column(sample: list[Cells], column: int) -> bool:
    """Whether nine in ten records have nothing in this column or behind it."""
    filled = sum(any(cells[column:]) for cells in sample if cells)
    return filled * 10 <= len(sample)


def _is_data(cell: str) -> bool:
    """Whether this is no column's name: empty, too long, a number, a date, a time."""
    try:
        float(cell or "0")
    except ValueError:
        return len(cell) > NAME or (any(map(str.isdigit, cell)) and not any(map(str.isalpha, cell)))
    return True


# The records


class _Lines:
    """Lines one by one. Those of the record at hand are held, so that it can be read in another way."""

    def __init__(self, lines: Iterable[str], passed: int = 0):
        self.lines, self.last = iter(lines), passed  # number of the line read last
        self.held: list[str] = []
        self.size, self.ended = 0, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.lines, "") if self.size <= FIELD else ""
        self.ended = not line
        if self.ended:
            raise StopIteration
        self.held.append(line)
        self.last, self.size = self.last + 1, self.size + len(line)
        return line

    def begin(self) -> int:
        """The number of the line that the next record begins on."""
        self.held, self.size, self.ended = [], 0, False
        return self.last + 1

    def again(self) -> None:
        """The lines of this record come again."""
        self.lines = chain(self.held, self.lines)
        self.last -= len(self.held)


def _records(
    lines: _Lines, dialect: dict[str, Any], width: int, path: Path
) -> Iterator[tuple[int, Cells]]:
    """(line it begins on, cells) of each record. Raises `LorakitError` for a quote that is never closed."""
    reader, tabs, bare = (
        csv.reader(lines, strict=True, **dialect),
        dialect["delimiter"] == "\t" and width != 1,
        False,
    )
    while True:
        row = lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        if tabs and not bare and _stray(lines.held, cells, width):
            bare, reader = True, csv.reader(lines, quoting=csv.QUOTE_NONE, **dialect)
            lines.again()
        elif cells is None and lines.ended:
            raise LorakitError(
                f"{path}:{_opened(lines, dialect)}: a quote is opened here and never closed; {DOUBLE}"
            )
        elif not _blank(cells):
            yield row, list(map(_unquoted, cells)) if bare and cells else cells


def _stray(held: list[str], cells: Cells, width: int) -> bool:
    """Whether quotes are data here: they enclose no whole cells, or run over lines that are records by themselves."""
    if cells is None:
        return True
    first, last = (line.count("\t") + 1 for line in (held[0], held[-1]))
    return first == width and (len(cells) != width or (len(held) > 1 and last == width))


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if re.fullmatch('"(?:[^"]|"")*"', cell) else cell


def _opened(lines: _Lines, dialect: dict[str, Any]) -> int:
    """The line on which the quote was opened that the lines held do not close: their last cell begins with it."""
    *_, record = csv.reader(lines.held, **dialect)
    return lines.last + 1 - len(re.findall(r"[^\r\n]+\Z|\r\n|\r|\n", record[-1] or "-"))
