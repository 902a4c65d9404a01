"""Apache Parquet (https://parquet.apache.org/docs/file-format/), a table stored by columns. A row, as it is read:

{"prompt": "Which crop stands two weeks under water?", "completion": "Rice.", "asked": "2024-05-02T07:30:00"}
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import opened, sign

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".pq")
BATCH = 64  # rows: a row may hold an image


def read(path: str | Path) -> Iterator[Example | Rejected]:
    """Rows are numbered by their place in the file."""
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(path)
    with opened(path) as packed, tempfile.TemporaryFile() as room:
        file = _unpacked(packed, room)
        start = file.read(32)
        if not start.startswith(b"PAR1") and (what := sign(start)):
            raise LorakitError(f"{path}: is {what}, not Parquet, whatever its name says")
        try:
            with parquet.ParquetFile(file, pre_buffer=False) as table:
                yield from rows(table.iter_batches(BATCH), path, path.name)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise LorakitError(
                f"{path}: not Parquet, or cut or damaged ({error}); download or write it again"
            ) from None


def _unpacked(file: BinaryIO, room: BinaryIO) -> BinaryIO:
    """The same bytes in a file where jumping is cheap."""
    if not isinstance(file, gzip.GzipFile):
        return file
    shutil.copyfileobj(file, room)
    room.seek(0)
    return room


def rows(
    batches: Iterable[pa.RecordBatch | pa.Table], path: Path, name: str
) -> Iterator[Example | Rejected]:
    """The rows of a table as plain Python values, numbered from 1; `name` stands for the file."""
    row = 0
    for batch in batches:
        columns = dict(zip(batch.schema.names, batch.columns))
        if len(columns) < batch.num_columns:
            ((again, _),) = Counter(batch.schema.names).most_common(1)
            raise LorakitError(
                f"{path}: several columns are named '{again}'; name each column once"
            )
        classes = classes_of(batch.schema)
        for index in range(batch.num_rows):
            row += 1
            yield _row(columns, classes, index, name, row)


def _row(
    columns: dict[str, pa.Array], classes: dict[str, list[str]], index: int, name: str, row: int
) -> Example | Rejected:
    import pyarrow as pa

    fields = {}
    for column, values in columns.items():
        try:
            value = values[index].as_py()
            fields[column] = _class(value, classes[column]) if column in classes else plain(value)
        except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:
            return Rejected(name, row, f"column '{column}': {error}")
    return Example(fields, name, row)


def classes(path: str | Path) -> dict[str, list[str]]:
    """The names of the classes of each column that holds some, in their order, where `datasets` noted them."""
    from pyarrow import parquet

    with opened(path) as packed, tempfile.TemporaryFile() as room:
        return classes_of(parquet.read_schema(_unpacked(packed, room)))


def classes_of(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of a column, where `datasets` noted them in the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"].items()
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }


def _class(value: Any, names: list[str]) -> str | None:
    return (
        None if value in (None, -1) else names[value]
    )  # -1: a class that is kept back, as in many test splits


def plain(value: Any) -> Any:
    """What JSON can carry: dates as ISO 8601, NaN as null, bytes as UTF-8 text, all else it lacks as it is printed.

    The bytes of an image or a sound, as `datasets` stores them, {"bytes": …, "path": …}, stay as they are.
    """
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return None if value != value else value
        case {"bytes": _, "path": _} if len(value) == 2:
            return value
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case bytes():
            return value.decode("utf-8")
        case datetime() | date() | time():
            return value.isoformat()
    return str(value)
