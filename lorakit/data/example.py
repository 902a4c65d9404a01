"""`Example`: one row of data and where it came from; `Examples`: as many as the disk holds."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
import weakref
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import sweep
from lorakit.common.processes import part

if TYPE_CHECKING:
    import numpy as np


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
        return Example(fields, self.file, self.row)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out, and why. Nothing vanishes: these go to `rejected.jsonl`."""

    file: str
    row: int
    reason: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.row}"


class _Indexed(Sequence[Any]):
    """Turns indices, negative ones and slices into calls of `_row`."""

    @abstractmethod
    def _row(self, index: int) -> Any: ...

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        return self._row(chosen) if isinstance(chosen, int) else [self._row(i) for i in chosen]


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)


class Examples(_Indexed):
    """Examples in a temporary file: memory holds 8 bytes a row, and child processes read the same file."""

    def __init__(self, examples: Iterable[Example]):
        self._ends = array("q", [0])
        sweep(Path(tempfile.gettempdir()), "lorakit-*")  # what killed processes left
        owner = os.getpid()
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115  (closed below; removed by the finalizer)
            prefix="lorakit-", suffix=f".rows{part(owner)}", delete=False
        )
        self._path = file.name
        self._file: int | None = None
        weakref.finalize(self, _remove, file.name, owner)
        try:
            with file:
                for example in examples:
                    row = (example.fields, example.file, example.row)
                    file.write(pickle.dumps(row, protocol=5))
                    self._ends.append(file.tell())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise LorakitError(
                f"the temporary copy of the rows could not be written: {error.strerror}",
                where=os.path.dirname(file.name),
                cure="free some space there, or name another folder in the environment variable TMPDIR",
            ) from None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _row(self, index: int) -> Example:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        start = self._ends[index]
        return Example(*pickle.loads(os.pread(self._file, self._ends[index + 1] - start, start)))

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_ends": self._ends, "_file": None}


class Chosen(_Indexed):
    """Some rows of a sequence, by their indices."""

    def __init__(self, rows: Sequence[Any], indices: Sequence[int] | np.ndarray):
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def _row(self, index: int) -> Any:
        return self.rows[int(self.indices[index])]


class Tagged(_Indexed):
    """The same rows, each with the name of the file of a mixture that it is from in `source`."""

    def __init__(self, rows: Sequence[Example], source: str):
        self.rows, self.source = rows, source

    def __len__(self) -> int:
        return len(self.rows)

    def _row(self, index: int) -> Example:
        row = self.rows[index]
        return row.with_fields({**row.fields, "source": self.source})


class Joined(_Indexed):
    """Several sequences end to end."""

    def __init__(self, *parts: Sequence[Any]):
        self.parts = parts
        self.ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _row(self, index: int) -> Any:
        place = bisect_right(self.ends, index)
        return self.parts[place][index - (self.ends[place - 1] if place else 0)]
