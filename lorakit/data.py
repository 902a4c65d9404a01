"""Load, check, deduplicate, split: a file of the user's becomes three disjoint sets of examples.

No row of one set is in another: equal rows are dropped, nearly equal ones (Jaccard index of word 3-grams ≥ 0.8,
estimated by MinHash, https://ekzhu.com/datasketch/lsh.html) stay together in one set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorakit import registry
from lorakit.errors import BadRow, LorakitError, did_you_mean
from lorakit.example import Example, Rejected

SETS = ("train", "validation", "test")
NEAR = 0.8  # Jaccard index from which two rows count as nearly equal
NEAR_ROWS = 50_000  # rows up to which near duplicates are looked for


@dataclass
class DataReport:
    """What was found in the data, for the notebook, `lorakit check` and the record."""

    file: str
    format: str = ""
    schema: str = ""
    reason: str = ""  # why this schema
    rows: int = 0  # found in the file
    rejected: list[Rejected] = field(default_factory=list)
    near_duplicates: int = 0  # rows that resemble an earlier one
    sets: dict[str, int] = field(default_factory=dict)  # examples per set
    sha256: str = ""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as plain lines."""
        out = [f"{self.file}: {self.rows} rows, {self.format}; {self.reason}"]
        if self.rejected:
            out.append(f"{len(self.rejected)} left out, the first: {self.rejected[0].where}: {self.rejected[0].reason}")
        if self.near_duplicates:
            out.append(f"{self.near_duplicates} rows nearly repeat another and stay in its set")
        if self.sets:
            out.append(", ".join(f"{n} {name}" for name, n in self.sets.items()))
        return out + self.notes

    def __str__(self) -> str:
        return "\n".join(self.lines())


def example_data(name: str) -> Path:
    """A file of the project's own `data/` folder, in a clone or in an installed package."""
    package = Path(__file__).parent
    for folder in (package.parent / "data", package / "assets" / "data"):
        if (folder / name).exists():
            return folder / name
    raise LorakitError(f"{name} is not among lorakit's example data")


def find(path: str) -> Path:
    """The file meant: the path as it stands, or lorakit's own example data (`data/relief.jsonl`) from anywhere."""
    if Path(path).exists():
        return Path(path)
    if path.replace("\\", "/").startswith("data/"):
        try:
            return example_data(path[5:])
        except LorakitError:
            pass
    raise LorakitError(f"{path}: no such file (looked from {Path.cwd()})")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: str, *, columns: Mapping[str, str] | None = None, gives: str | None = None
         ) -> tuple[list[Example], DataReport]:
    """Every usable row of a file in its schema's terms, and a report that names the others.

    `columns` maps a schema's name to the file's column; `gives` restricts the schemas to one task's field.
    """
    file = find(path)
    if file.is_dir():
        raise LorakitError(f"{file}: is a folder, expected a file")
    formats = {s: name for name, m in registry.modules("formats").items() for s in m.SUFFIXES}
    if file.suffix.lower() not in formats:
        known = ", ".join(sorted(formats))
        raise LorakitError(f"{file}: no format reads '{file.suffix}'; known endings: {known}")
    report = DataReport(file=str(path), format=formats[file.suffix.lower()], sha256=sha256(file))
    raw: list[Example] = []
    for row in registry.load("formats", report.format).read(file):
        report.rows += 1
        if isinstance(row, Rejected):
            report.rejected.append(row)
        else:
            raw.append(row)
    if not raw:
        first = f"; the first: {report.rejected[0].where}: {report.rejected[0].reason}" if report.rejected else ""
        raise LorakitError(f"{file}: no usable row{first}")
    raw = _rename(raw, columns or {})
    report.schema, report.reason = find_schema(raw, gives)
    convert = registry.load("schemas", report.schema).convert
    examples = []
    for row in raw:
        try:
            examples.append(row.with_fields({**convert(row.fields), "columns": row.fields}))
        except (BadRow, KeyError) as error:
            reason = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            report.rejected.append(Rejected(row.file, row.row, reason))
    if not examples:
        bad = report.rejected[0]
        raise LorakitError(f"{file}: no usable row; the first: {bad.where}: {bad.reason}")
    return examples, report


def _rename(rows: Sequence[Example], columns: Mapping[str, str]) -> list[Example]:
    """Rows with the schema's names beside the file's; a row that lacks a column lacks the schema's name too."""
    present = {column for row in rows for column in row.fields}
    for column in columns.values():
        if column not in present:
            raise LorakitError(f"{rows[0].file}: columns names '{column}', which no row has"
                               f"{did_you_mean(column, present)} (columns: {', '.join(sorted(present))})")
    return [row.with_fields({**{k: v for k, v in row.fields.items() if k not in columns},
                             **{name: row.fields[c] for name, c in columns.items() if c in row.fields}})
            for row in rows]


def find_schema(rows: Sequence[Example], gives: str | None = None) -> tuple[str, str]:
    """(schema, reason in words). The schema that explains the most columns of the most rows wins."""
    columns = Counter(name for row in rows for name in row.fields)
    common = {name for name, n in columns.items() if n * 2 > len(rows)}
    schemas = {n: m for n, m in registry.modules("schemas").items() if gives in (None, m.GIVES)}
    fits = {n: m for n, m in schemas.items() if all(common & set(names) for names in m.REQUIRED)}
    if not fits:
        wanted = "; ".join(f"{n}: {' + '.join('/'.join(c) for c in m.REQUIRED)}" for n, m in schemas.items())
        raise LorakitError(
            f"{rows[0].file}: the columns {', '.join(sorted(columns))} fit no schema ({wanted}). "
            "Name them with `columns`, e.g. columns: {prompt: question_text, answer: solution}"
        )
    name = max(fits, key=lambda n: len(fits[n].REQUIRED))
    found = [next(c for c in names if c in common) for names in fits[name].REQUIRED]
    return name, f"schema {name}, because the rows have {' and '.join(map(repr, found))}"


def text(example: Example) -> str:
    """All the words of an example, for comparisons."""
    fields = example.fields
    return "\n".join(m["content"] for m in fields["messages"]) if "messages" in fields else fields["text"]


def _normal(words: str) -> str:
    return " ".join(words.casefold().split())


def duplicates(examples: Sequence[Example]) -> dict[int, int]:
    """Index of every exact repetition (case and white space aside) -> index of the first."""
    first: dict[str, int] = {}
    return {i: j for i, e in enumerate(examples) if (j := first.setdefault(_normal(text(e)), i)) != i}


def near_groups(examples: Sequence[Example]) -> list[int]:
    """For each example the smallest index of the group of near duplicates that it belongs to."""
    from datasketch import MinHash, MinHashLSH

    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    # The index only proposes: it misses 1 in 20 pairs at 0.8 with these weights, 3 in 5 with its own.
    index, sketches = MinHashLSH(threshold=NEAR, num_perm=128, weights=(0.05, 0.95)), []
    for i, example in enumerate(examples):
        words = _normal(text(example)).split()
        grams = {" ".join(words[k:k + 3]).encode("utf-8", "replace") for k in range(max(1, len(words) - 2))}
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch(list(grams))
        for j in index.query(sketch):
            if sketch.jaccard(sketches[j]) >= NEAR:
                a, b = sorted((root(i), root(j)))
                parent[b] = a
        index.insert(i, sketch)
        sketches.append(sketch)
    return [root(i) for i in range(len(examples))]


def split(examples: Sequence[Example], *, validation_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0,
          group_by: str | None = None, given: Mapping[str, Sequence[Example]] | None = None,
          report: DataReport | None = None) -> dict[str, list[Example]]:
    """Three sets by seed; `given` holds sets that have a file of their own.

    Equal rows are dropped, near duplicates and rows with the same value of `group_by` stay in one set. A row of
    `examples` that resembles a given validation or test row is left out of training. All of it is noted in `report`.
    """
    report = report if report is not None else DataReport(file=examples[0].file)
    given = {name: list(rows) for name, rows in (given or {}).items()}
    # Given sets first, test before validation: of equal rows the first stays.
    pool = [(name, row) for name in ("test", "validation") for row in given.get(name, ())]
    pool += [("", row) for row in examples]
    repeats = duplicates([row for _, row in pool])
    for i, first in repeats.items():
        row, other = pool[i][1], pool[first][1]
        report.rejected.append(Rejected(row.file, row.row, f"repeats {other.where}"))
    pool = [entry for i, entry in enumerate(pool) if i not in repeats]
    groups = list(range(len(pool)))
    if len(pool) <= NEAR_ROWS:
        groups = near_groups([row for _, row in pool])
        report.near_duplicates = len(groups) - len(set(groups))
    else:
        report.notes.append(f"near duplicates were not looked for in more than {NEAR_ROWS:,} rows")
    if group_by:
        groups = _join(groups, [row.fields["columns"].get(group_by) for _, row in pool], group_by)
    sets: dict[str, list[Example]] = {name: [] for name in SETS}
    members: dict[int, list[int]] = defaultdict(list)
    taken: dict[int, tuple[str, str]] = {}  # group -> the given set that holds it, its first row
    for i, (name, row) in enumerate(pool):
        home, first = taken.setdefault(groups[i], (name, row.where)) if name else taken.get(groups[i], ("", ""))
        if home != name:
            report.rejected.append(Rejected(row.file, row.row, f"resembles {first}, a {home} row"))
        elif name:
            sets[name].append(row)
        else:
            members[groups[i]].append(i)
    free = sum(map(len, members.values()))
    wanted = {name: 0 if given.get(name) else round(free * fraction)
              for name, fraction in (("test", test_fraction), ("validation", validation_fraction))}
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if fraction and not given.get(name) and not wanted[name]:
            wanted[name] = 1
    keys = list(members)
    for key in (keys[i] for i in np.random.default_rng(seed).permutation(len(keys))):
        rows = [pool[i][1] for i in members[key]]
        home = next((n for n, room in wanted.items() if len(rows) <= room), "train")
        sets[home] += rows
        if home in wanted:
            wanted[home] -= len(rows)
    for name, missing in wanted.items():
        if missing and not sets[name]:
            raise LorakitError(f"{report.file}: {free} rows in {len(members)} groups leave no {name} row; "
                               f"add rows, raise {name}_fraction, name {name}_data, or set {name}_fraction to 0")
    if not sets["train"]:
        raise LorakitError(f"{report.file}: no row is left to train on ({free} rows in {len(members)} groups); "
                           "add rows")
    report.sets = {name: len(rows) for name, rows in sets.items()}
    return sets


def _join(groups: list[int], values: list[Any], column: str) -> list[int]:
    if all(v is None for v in values):
        raise LorakitError(f"group_by={column!r}: no row has that column")
    parent = {g: g for g in groups}

    def root(g: int) -> int:
        while parent[g] != g:
            g = parent[g]
        return g

    first: dict[str, int] = {}
    for group, value in zip(groups, values, strict=True):
        if value is not None:
            a, b = sorted((root(first.setdefault(json.dumps(value, default=str), group)), root(group)))
            parent[b] = a
    return [root(g) for g in groups]


def shuffle_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """The same prompts with all answers dealt anew by seed: what a control run trains on."""
    if any("messages" not in e.fields for e in examples):
        raise LorakitError("shuffle_answers=True needs rows with answers; plain text has none")
    answers = [m for e in examples for m in e.fields["messages"] if m["role"] == "assistant"]
    dealt = (answers[i] for i in np.random.default_rng((seed, 1)).permutation(len(answers)))
    return [e.with_fields({**e.fields, "messages": [next(dealt) if m["role"] == "assistant" else m
                                                    for m in e.fields["messages"]]}) for e in examples]


def prepare(data: str, *, validation_data: str | None = None, test_data: str | None = None,
            columns: Mapping[str, str] | None = None, gives: str | None = None, seed: int = 0,
            validation_fraction: float = 0.1, test_fraction: float = 0.1, group_by: str | None = None,
            shuffled: bool = False) -> tuple[dict[str, list[Example]], DataReport]:
    """The three sets of a run and what was found on the way."""
    examples, report = load(data, columns=columns, gives=gives)
    given: dict[str, Iterable[Example]] = {}
    for name, path in (("validation", validation_data), ("test", test_data)):
        if path:
            given[name], other = load(path, columns=columns, gives=registry.load("schemas", report.schema).GIVES)
            report.notes.append(f"{name} rows: {other.lines()[0]}")
            report.rejected += other.rejected
            report.sha256 = hashlib.sha256((report.sha256 + other.sha256).encode()).hexdigest()
    sets = split(examples, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed,
                 group_by=group_by, given=given, report=report)
    if shuffled:
        sets["train"] = shuffle_answers(sets["train"], seed)
        sets["validation"] = shuffle_answers(sets["validation"], seed)
        report.notes.append("control: the answers of the training and validation rows are dealt at random")
    return sets, report
