"""Arrow's own files (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format), Feather among them. A row:

{"prompt": "Which crop stands two weeks under water?", "completion": "Rice."}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import parquet

SUFFIXES = (".arrow", ".feather")


def read(path: str | Path) -> Iterator[Example | Rejected]:
    """Rows are numbered by their place in the file, which may be written as a file or as a stream."""
    import pyarrow as pa

    path = Path(path)
    try:
        with pa.OSFile(str(path)) as file:
            try:
                table = pa.ipc.open_file(file).read_all()
            except pa.ArrowInvalid:
                file.seek(0)
                table = pa.ipc.open_stream(file).read_all()
        table.validate(full=True)  # a damaged offset would end the process without a word
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LorakitError(
            f"{path}: not Arrow, or cut or damaged ({error}); write it again"
        ) from None
    yield from parquet.rows(table.to_batches(max_chunksize=parquet.BATCH), path, path.name)
