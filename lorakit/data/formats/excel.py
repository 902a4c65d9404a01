"""A workbook of Excel or LibreOffice (.xlsx): the sheet with rows, whose first full row names the columns. A row of it:

How much water does a person need a day? | 15 litres.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, time
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats.parquet import plain
from lorakit.data.splits import official, split_of

SUFFIXES = (".xlsx", ".xlsm")


def read(
    path: str | Path, *, sheet: str | None = None, split: str | None = None
) -> Iterator[Example | Rejected]:
    """Rows are numbered as Excel numbers them; whole numbers stay whole, and a day is a date without a time.

    Titles above the header are passed over. `split` names the sheet of an official split. Raises `LorakitError` where
    several sheets hold rows and none is named.
    """
    path = Path(path)
    book = _opened(path)
    try:
        page = book[_sheet(path, book, sheet, split)]
        names: dict[int, str] = {}
        for number, cells in enumerate(page.iter_rows(values_only=True), 1):
            if not any(cell not in (None, "") for cell in cells):
                continue
            if not names:
                names = _names(cells, page.max_column or len(cells), path)
                continue
            yield Example({n: _value(cells, i) for i, n in names.items()}, path.name, number)
    finally:
        book.close()


def splits(path: str | Path, *, sheet: str | None = None, split: str | None = None) -> list[str]:
    """The official splits that the sheets are named after."""
    if sheet is not None or split is not None:
        return []
    book = _opened(Path(path))
    found = [name for name in map(split_of, book.sheetnames) if name]
    book.close()
    return found if official(found) else []


def _sheet(path: Path, book: Any, sheet: str | None, split: str | None) -> str:
    """The name of the sheet to read."""
    known = [page.title for page in book.worksheets]
    if sheet is not None and sheet not in known:
        raise LorakitError(f"{path}: has no sheet {sheet!r} (sheets: {', '.join(known)})")
    if sheet or len(known) == 1:
        return sheet or known[0]
    if split is not None:
        return next(name for name in known if split_of(name) == split)
    filled = [name for name in known if _holds_rows(book[name])]
    if len(filled) > 1:
        raise LorakitError(
            f"several sheets hold rows: {', '.join(filled)}",
            where=path,
            setting="format",
            cure=f"name the one to read: format: {{excel: {{sheet: {filled[0]}}}}}",
        )
    return filled[0] if filled else known[0]


def _holds_rows(page: Any) -> bool:
    """Whether a header and a row, of two cells at least, stand in a sheet."""
    rows = page.iter_rows(max_row=100, values_only=True)
    return sum(sum(cell not in (None, "") for cell in cells) > 1 for cells in rows) > 1


def _opened(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise LorakitError(
            f"{path}: a workbook needs the package openpyxl: pip install openpyxl, or save the table as CSV"
        ) from None
    try:
        return openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, TypeError, AttributeError) as error:
        raise LorakitError(
            f"{path}: is no workbook that can be read ({type(error).__name__}: {error}); save the table as CSV"
        ) from None
    except Exception as error:  # openpyxl checks little: a damaged workbook raises almost anything
        raise LorakitError(
            f"{path}: is no workbook that can be read ({error}); save the table as CSV"
        ) from None


def _names(cells: tuple, width: int, path: Path) -> dict[int, str]:
    """Column -> its name; nothing for a title, which fills one cell of several."""
    named = {i: str(cell).strip() for i, cell in enumerate(cells) if cell not in (None, "")}
    if len(named) == 1 < width:
        return {}
    again = [name for name, count in Counter(named.values()).items() if count > 1]
    if again:
        raise LorakitError(
            f"the header is unusable: {again[0]!r} stands twice",
            where=path,
            cure="name each column once",
        )
    return named


def _value(cells: tuple, column: int) -> Any:
    value = cells[column] if column < len(cells) else None
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()  # Excel stores a day as its midnight
    value = plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
