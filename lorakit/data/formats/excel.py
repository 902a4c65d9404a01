"""A workbook of Excel or LibreOffice (.xlsx): the first sheet, its first full row names the columns. A row of it:

How much water does a person need a day? | 15 litres.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats.parquet import plain

SUFFIXES = (".xlsx", ".xlsm")


def read(path: str | Path, *, sheet: str | None = None) -> Iterator[Example | Rejected]:
    """Rows are numbered as Excel numbers them; whole numbers stay whole. Titles above the header are passed over."""
    path = Path(path)
    book = _opened(path)
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise LorakitError(
                f"{path}: has no sheet {sheet!r} (sheets: {', '.join(book.sheetnames)})"
            )
        page = book[sheet] if sheet else book.worksheets[0]
        names: dict[int, str] = {}
        for number, cells in enumerate(page.iter_rows(values_only=True), 1):
            if not any(cell not in (None, "") for cell in cells):
                continue
            if not names:
                names = _names(cells, page.max_column or len(cells))
                continue
            yield Example({n: _value(cells, i) for i, n in names.items()}, path.name, number)
    finally:
        book.close()


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


def _names(cells: tuple, width: int) -> dict[int, str]:
    """Column -> its name; nothing for a title, which fills one cell of several."""
    named = {i: str(cell).strip() for i, cell in enumerate(cells) if cell not in (None, "")}
    return {} if len(named) == 1 < width else named


def _value(cells: tuple, column: int) -> Any:
    value = plain(cells[column]) if column < len(cells) else None
    return int(value) if isinstance(value, float) and value.is_integer() else value
