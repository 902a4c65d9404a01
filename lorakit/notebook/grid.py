"""A notebook once per row of a table: queued on the cards there are, resumable, and compared in the end.

    rank: [4, 16]                      - {rank: 4, learning_rate: 1e-3}          rank,learning_rate
    learning_rate: [1e-3, 3e-3]        - {rank: 16, learning_rate: 3e-3}         4,1e-3
    grid.yaml: each with each          rows.yaml: these, no others               rows.csv: the same

Files are the only state: `outputs/<notebook>-over/rows/<row>/` holds a row's parameters, status, log and executed copy.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, require_keys, sweep
from lorakit.common.locks import file_lock
from lorakit.machine import hardware
from lorakit.notebook.execute import execute, known, refuse
from lorakit.results.compare import Comparison, compare, plot
from lorakit.results.report import primary
from lorakit.runs.folder import Folder, slug, write_json
from lorakit.training import gpu_queue


@dataclass
class Row:
    """One line of the table: its parameters, and the folder that knows how far it is."""

    folder: Path
    parameters: dict[str, Any]
    run: Path  # the run that the notebook makes
    notebook: str = ""  # SHA-256 of the notebook that it was executed from

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def noted(self) -> dict[str, Any]:
        path = self.folder / "row.json"
        try:
            return (
                require_keys(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
            )
        except (OSError, ValueError) as error:
            raise LorakitError(f"{path}: is damaged ({error}); delete it and start again") from None

    @property
    def done(self) -> bool:
        return self.noted.get("status") == "done" and self.noted.get("notebook") == self.notebook


@dataclass
class Over:
    """What came of all rows."""

    rows: list[Row]
    folder: Path
    comparison: Comparison | None = None
    words: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if not row.done]

    def table(self) -> list[dict[str, Any]]:
        """A line per row: parameters, status, the score that says the most."""
        out = []
        for row in self.rows:
            scores = Folder(row.run).scores
            best = primary(scores)
            out.append(
                {
                    **row.parameters,
                    "status": row.noted.get("status", "not started"),
                    "metric": best,
                    "score": scores[best]["after"] if best else None,
                    "error": row.noted.get("error", ""),
                    "run": str(row.run),
                }
            )
        return out

    def __str__(self) -> str:
        done = len(self.rows) - len(self.failed)
        said = [f"{done} of {len(self.rows)} rows are done; see {self.folder}", *self.words]
        said += [
            f"failed: {row.name}: {row.noted.get('error') or 'it ended without a word'} (log: "
            f"{row.folder / 'log.txt'})"
            for row in self.failed
        ]
        return "\n".join([*said, *(self.comparison.lines() if self.comparison else [])])


def table(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of parameters in a YAML or CSV file. Raises `LorakitError` saying what is wrong with it."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                found: Any = [
                    {k: v for k, v in row.items() if v not in (None, "")}
                    for row in csv.DictReader(file)
                ]
        else:
            found = strict_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LorakitError(
            f"{path}: no such file; write 'rank: [4, 16]' there, or a CSV with a row per run"
        ) from None
    except Exception as error:  # of the disk, of UTF-8, of YAML
        raise LorakitError(f"{path}: cannot be read: {error}") from None
    if isinstance(found, dict):
        lists = [value if isinstance(value, list) else [value] for value in found.values()]
        found = [dict(zip(map(str, found), values, strict=True)) for values in product(*lists)]
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(row, dict) and row for row in found)
    ):
        raise LorakitError(
            f"{path}: expected 'name: [values]' lines, a list of rows, or a CSV with names above"
        )
    if None in {name for row in found for name in row}:
        raise LorakitError(f"{path}: a row has more cells than there are names")
    return found


def rows(
    notebook: Path, grid: Sequence[Mapping[str, Any]], given: Mapping[str, Any], root: Path
) -> list[Row]:
    """Each row with its folders. Raises `LorakitError` for a parameter that the notebook does not have."""
    there = known(notebook)
    if "output_dir" not in there:
        raise LorakitError(
            f"{notebook}: has no parameter output_dir, so all rows would write into one folder; add it"
        )
    content = hashlib.sha256(notebook.read_bytes()).hexdigest()
    own = (
        str(given.get("name", strict_yaml.load(there["name"]["default"])))
        if "name" in there
        else ""
    )
    found = []
    for values in grid:
        refuse(notebook, values, there)
        mark = slug(values)
        name = f"{values.get('name', own)}-{mark}" if own else ""
        target = (
            {"output_dir": str(root / "runs"), "name": name}
            if own
            else {"output_dir": str(root / "runs" / mark)}
        )
        run = Path(target["output_dir"]) / name
        found.append(Row(root / "rows" / mark, {**given, **values, **target}, run, content))
    unique = {row.name: row for row in found}
    return list(unique.values())


def over(
    notebook: str | os.PathLike,
    grid: str | os.PathLike,
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike = "outputs",
    say: Callable[[str], Any] = print,
) -> Over:
    """Executes the notebook for every row that is not done yet, as many at a time as there are cards.

    A row that fails is named and stops no other. Started again after a cut, only what is missing is done, and a run
    that was cut goes on from its checkpoint. Raises `LorakitError` before anything runs when the table does not fit.
    """
    path = Path(notebook)
    root = (Path(output_dir) / f"{path.stem}-over").absolute()
    every = rows(path, table(grid), parameters or {}, root)
    todo = [row for row in every if not row.done]
    say(f"{len(every)} rows, {len(every) - len(todo)} done before; {root}")
    with ThreadPoolExecutor(max(1, len(hardware.cards()))) as pool:
        children: list[subprocess.Popen] = []
        try:
            for row, status in zip(
                todo, pool.map(lambda row: _started(row, path, children), todo), strict=True
            ):
                say(
                    f"{status}: {row.name}"
                    + (f": {row.noted.get('error')}" if row.noted.get("error") else "")
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            raise
    return _ended(Over(every, root))


def _started(row: Row, notebook: Path, children: list[subprocess.Popen]) -> str:
    """Executes one row in a process of its own, so that a crash there stays there."""
    row.folder.mkdir(parents=True, exist_ok=True)
    write_json(
        row.folder / "asked.json",
        {
            "source": str(notebook.absolute()),
            "parameters": row.parameters,
            "notebook": row.notebook,
        },
    )
    with open(row.folder / "log.txt", "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "lorakit.notebook.grid", str(row.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=hardware.child_environment(),
        )
    children.append(child)
    code = child.wait()
    if code and row.noted.get("status") != "failed":
        write_json(
            row.folder / "row.json",
            {"status": "interrupted", "error": f"its process ended with code {code}"},
        )
    return row.noted.get("status", "interrupted")


def one(folder: Path) -> None:
    """In the child: waits for its turn on a card, executes, notes how it went."""
    asked = require_keys(
        json.loads((folder / "asked.json").read_text(encoding="utf-8")),
        "source",
        "parameters",
        "notebook",
    )
    noted = {"notebook": asked["notebook"], "parameters": asked["parameters"]}
    with file_lock(folder / ".lock"), gpu_queue.on_cards(str(folder), 1):
        sweep(folder)  # what a killed process was writing
        if Row(
            folder, {}, folder, asked["notebook"]
        ).done:  # by another process, while this one waited
            return
        write_json(folder / "row.json", {**noted, "status": "running"})
        try:
            execute(asked["source"], asked["parameters"], folder)
        except LorakitError as error:
            write_json(
                folder / "row.json",
                {**noted, "status": "failed", "error": str(error).splitlines()[0]},
            )
            raise
        write_json(folder / "row.json", {**noted, "status": "done"})


def _ended(found: Over) -> Over:
    """One comparison of what is done, as text, as a table and as a picture."""
    scored = [row.run for row in found.rows if row.done and (row.run / "record.json").is_file()]
    if len(scored) > 1:
        try:
            found.comparison = compare(*scored, unscored=True)
            found.words.append(f"curves: {plot(scored, found.folder / 'compare.png')}")
        except LorakitError as error:
            found.words.append(f"not compared: {error}")
    lines = found.table()
    with (
        atomic_write(found.folder / "rows.csv") as part,
        open(part, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
    with atomic_write(found.folder / "compare.txt") as part:
        part.write_text(f"{found}\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    try:
        one(Path(sys.argv[1]))
    except LorakitError as error:
        sys.exit(f"lorakit: {error}")
