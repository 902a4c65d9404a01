"""The folder of a run: one writer at a time, readable by anyone at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import Timeout

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, require_keys, sweep
from lorakit.common.locks import file_lock
from lorakit.machine import hardware
from lorakit.runs.status import Status, derive


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with atomic_write(path) as part:
        # A file's name may be no text: what is no UTF-8 becomes JSON's own escape.
        part.write_text(
            json.dumps(content, indent=1, ensure_ascii=False),
            encoding="utf-8",
            errors="backslashreplace",
        )


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON Lines, whole or not at all."""
    with (
        atomic_write(path) as part,
        open(part, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _numbered(line: dict) -> dict:
    """The same line. Raises `ValueError` for one of a history that has no number where its curve needs one."""
    for name in ("update", "loss", "validation_loss"):
        if not isinstance(line.get(name, 0), (int, float)):
            raise ValueError(f"'{name}' is {line[name]!r}, no number")
    return line


def read_lines(path: Path, *needed: str) -> list[dict]:
    """Complete lines only: a last line without its end was being written. Each has these keys."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LorakitError(f"cannot be read ({error.strerror})", where=path) from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [_numbered(require_keys(json.loads(line), *needed))] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise LorakitError(
                f"{path}:{number}: is damaged ({error}); delete the line and start again"
            ) from None
    return rows


FORMAT = 2  # of record.json: since 2 a run that is done holds the hash of each saved file, `files`
ENTRY = ("before", "after", "difference", "interval", "rows", "higher_is_better")  # of scores.json


def slug(parameters: Mapping[str, Any]) -> str:
    """`rank-4-learning_rate-0.001-5f3a1c`: a folder's name, the same for the same values."""
    words = "-".join(f"{name}-{value}" for name, value in parameters.items())
    mark = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[
        :6
    ]
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', words)[:60].strip('-.')}-{mark}"


class RunFolder:
    """`output_dir/name`: the files of one run. No other class knows their names.

    One process writes, under the lock; anybody may read at any moment, since every file is replaced atomically or grows
    by whole lines.
    """

    writable = True

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def of(cls, path: str | os.PathLike) -> RunFolder:
        """An existing run. Raises `LorakitError` when there is none."""
        if not (Path(path) / "record.json").is_file():
            raise LorakitError(
                f"{path}: no run here (record.json is missing); name a folder like outputs/quickstart"
            )
        return cls(path)

    # Where things are

    @property
    def settings(self) -> Path:
        """The settings as resolved: enough to start the run again."""
        return self / "run.yaml"

    @property
    def asked(self) -> Path:
        """The settings as a launcher passes them to its child process."""
        return self / "asked.json"

    @property
    def log(self) -> Path:
        """What the child process printed."""
        return self / "log.txt"

    @property
    def rows(self) -> Path:
        """The encoded rows."""
        return self / "rows"

    @property
    def last_checkpoint(self) -> Path:
        """What an interrupted run resumes from."""
        return self / "checkpoint/last.safetensors"

    @property
    def best_checkpoint(self) -> Path:
        """The trained weights with the lowest validation loss."""
        return self / "checkpoint/best.safetensors"

    @property
    def rejected(self) -> Path:
        """Rows that were left out, with their reasons."""
        return self / "rejected.jsonl"

    @property
    def answers(self) -> Path:
        """The test rows with their references and the answers before and after."""
        return self / "answers.jsonl"

    def saved(self, method: str) -> Path:
        """What was trained: the adapter, or the whole model."""
        return self / ("adapter" if method == "lora" else "model")

    def outcome(self, when: str) -> Path:
        """What a model did on the test rows, `before` or `after` training. Older runs keep it in `rows`."""
        former = self.rows / f"{when}.json"
        return former if former.exists() else self / "outcomes" / f"{when}.json"

    def evidence(self, name: str) -> Path:
        """What was measured beyond the scores, by the name of the question."""
        return self / "evidence" / f"{name}.json"

    # Reading

    def meta(self) -> dict[str, Any]:
        """What was noted when the rows were encoded, read without them. Raises `LorakitError` when it is damaged."""
        try:
            return read_meta(self.rows)
        except (OSError, ValueError, RecursionError) as error:
            raise LorakitError(
                f"{self.rows}: the encoded rows are missing or damaged ({type(error).__name__}: {error}); "
                "start the run again under another name"
            ) from None

    @property
    def busy(self) -> bool:
        """Whether a process holds the lock: tried twice, since another reader may hold it for an instant."""
        if not any((self / name).exists() for name in (".lock", ".lock.held")):
            return False
        for pause in (0.002, 0):
            try:
                with file_lock(self / ".lock").acquire(timeout=0):
                    return False
            except Timeout:
                time.sleep(pause)
            except OSError:
                return False
        return True

    @property
    def record(self) -> dict[str, Any]:
        """`record.json`, with the status as it really is: `running` without a process reads `interrupted`."""
        record = self._noted()
        if record["status"] == Status.RUNNING and not self.busy:
            record = self._noted()  # it may have ended between the two looks
            record["status"] = derive(record["status"], locked=False)
        return record

    @property
    def status(self) -> Status:
        return Status(self.record["status"])

    def _noted(self) -> dict[str, Any]:
        path = self / "record.json"
        try:
            found = require_keys(json.loads(path.read_text(encoding="utf-8")))
            for name in ("settings", "data", "base", "files"):
                missing = name in ("base", "files") and found.get(name) is None  # an older run
                require_keys({} if missing else found.get(name, {}))
            if not isinstance(found.get("format", 1), int):
                raise ValueError(f"'format' is {found['format']!r}, no whole number")
            base = found.get("base") or {}
            for name, value in {**base, "sha256": found.get("base_sha256")}.items():
                if not isinstance(value, str | None):
                    raise ValueError(f"the base's '{name}' is {value!r}, no text")
            return found | {"status": Status(found.get("status", Status.QUEUED))}
        except FileNotFoundError:
            return {"status": Status.QUEUED}
        except NotADirectoryError as error:
            raise LorakitError(
                f"{self.path}: cannot be written ({error.strerror})",
                setting="output_dir",
                value=str(self.path.parent),
                cure="name another output_dir",
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise LorakitError(
                f"{path}: is damaged ({error}); restore it, or give the run another name"
            ) from None

    @property
    def scores(self) -> dict[str, dict]:
        """`scores.json`: for each metric the values before and after, their difference and its interval."""
        path = self / "scores.json"
        try:
            found = (
                require_keys(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
            )
            return {name: require_keys(entry, *ENTRY) for name, entry in found.items()}
        except (OSError, ValueError, RecursionError) as error:
            raise LorakitError(
                f"{path}: is damaged ({error}); lorakit evaluate writes it again"
            ) from None

    def history(self) -> tuple[list[dict], list[dict]]:
        """(a line per update, a line per validation)."""
        lines = read_lines(self / "history.jsonl", "update")
        return [x for x in lines if "loss" in x], [x for x in lines if "validation_loss" in x]

    # Writing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The only writer. The lock is the operating system's: it goes with its process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = file_lock(self / ".lock")
            lock.acquire(timeout=1)  # a reader holds it for an instant, see `busy`
        except Timeout:
            raise LorakitError(
                f"{self.path}: another run is writing here; give this one another name, "
                "or wait, or stop that one"
            ) from None
        except OSError as error:
            raise LorakitError(
                f"{self.path}: cannot be written ({error.strerror}); name another output_dir"
            ) from None
        try:
            sweep(self.path)
            yield
        finally:
            lock.release()

    def note(self, **facts: Any) -> None:
        """Adds to `record.json`."""
        write_json(self / "record.json", {**self._noted(), **facts})

    def append(self, line: dict, name: str = "history.jsonl") -> None:
        """One line more, visible to readers at once."""
        try:
            with open(self / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except FileNotFoundError:
            raise LorakitError(
                "the folder of the run was removed while it trained",
                where=self.path,
                cure="start again; without its checkpoint it begins anew",
            ) from None
        except OSError as error:
            raise LorakitError(
                f"{self / name}: could not be written: {error.strerror}; free some space and start "
                "again: the run goes on from its checkpoint"
            ) from None

    def rewind(self, update: int) -> None:
        """Drops the lines after `update`: a resumed run writes them again."""
        for name in ("history.jsonl", "samples.jsonl"):
            if name == "history.jsonl" or (self / name).exists():
                write_lines(
                    self / name,
                    [x for x in read_lines(self / name, "update") if x["update"] <= update],
                )

    def clear(self) -> None:
        """Removes what an earlier attempt without a checkpoint has left."""
        for path in (self.best_checkpoint, self / "history.jsonl", *self.path.glob("outcomes/*")):
            path.unlink(missing_ok=True)


Folder = RunFolder  # the public name: `lorakit.Folder`


class ReadOnlyRunFolder(RunFolder):
    """The folder of a run for a process of rank 1 and above: rank 0 writes, and what the others write is dropped."""

    writable = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def note(self, **facts: Any) -> None:
        pass

    def append(self, line: dict, name: str = "") -> None:
        pass

    def rewind(self, update: int) -> None:
        pass

    def clear(self) -> None:
        pass


def read_meta(rows: Path) -> dict[str, Any]:
    """`meta.json` beside encoded rows: `task`, `classes`, `stop_ids`, `opening`. Raises `OSError` or `ValueError`."""
    found = json.loads((rows / "meta.json").read_text(encoding="utf-8"))
    return {"classes": []} | require_keys(found, "task", "stop_ids", "opening")


def versions() -> dict[str, str]:
    """Of Python, of lorakit and of the packages that bear on a result."""
    found = {"python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["lorakit"] = metadata.version("lorakit")
    return found | hardware.installed()
