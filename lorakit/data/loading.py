"""Load, check, deduplicate, split: a file of the user's becomes three disjoint sets of examples.

No row of one set is in another: equal rows are dropped, nearly equal ones (Jaccard index of word 3-grams ≥ 0.8,
estimated by MinHash; of pictures a perceptual hash) stay together in one set.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError, did_you_mean
from lorakit.common.locations import ASSETS, ROOT
from lorakit.data import media, minhash
from lorakit.data.example import Chosen, Example, Examples, Joined, Rejected
from lorakit.data.schemas import fill, holes

SETS = ("train", "validation", "test")
HEAD = 1000  # readable rows from which the schema is found
DEEP = 100  # lists and objects inside each other; Python writes and compares values by recursion
NEAR = 0.8  # Jaccard index from which two rows count as nearly equal
NEAR_ROWS = 50_000  # of more rows, a sample of so many is searched for near duplicates
LEAK = (
    "no group_by: shots of one leaf, or one speaker's recordings, may stand in training and test rows alike, and a "
    "score is too good then; name the column that tells them apart"
)
CLASSES, CLASS_LENGTH = (
    20,
    64,
)  # answers so few and so short (characters) are classes, and the split keeps their shares


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
            out.append(
                f"{len(self.rejected)} left out, the first: {self.rejected[0].where}: {self.rejected[0].reason}"
            )
        if self.near_duplicates:
            out.append(f"{self.near_duplicates} rows nearly repeat another and stay in its set")
        if self.sets:
            out.append(", ".join(f"{n} {name}" for name, n in self.sets.items()))
        return out + self.notes

    def __str__(self) -> str:
        return "\n".join(self.lines())


def shown(rows: Iterable[Any], words: str) -> Iterable[Any]:
    """With a progress bar, once it takes long."""
    return tqdm(
        rows, desc=words, unit=" rows", unit_scale=True, delay=3, mininterval=1, leave=False
    )


def example_data(name: str) -> Path:
    """A file of the project's own `data/` folder, in a clone or in an installed package."""
    for folder in (ROOT / "data", ASSETS / "data"):
        if ".." not in Path(name).parts and (folder / name).exists():
            return folder / name
    raise LorakitError(f"{name} is not among lorakit's example data")


def find(path: str) -> Path | None:
    """The file meant: the path as it stands, or lorakit's own example data (`data/relief.jsonl`) from anywhere."""
    if Path(path).exists():
        return Path(path)
    if path.replace("\\", "/").startswith("data/"):
        try:
            return example_data(path[5:])
        except LorakitError:
            pass
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Source:
    """A file, a folder or a hub id, and the format that reads it."""

    name: str  # as the user gave it
    path: str  # as it is read
    format: str
    options: dict[str, Any]

    @property
    def module(self) -> ModuleType:
        return registry.load("formats", self.format)

    def read(self) -> Iterator[Example | Rejected]:
        return self.module.read(self.path, **self.options)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the content, or the name that the format knows it by."""
        if hasattr(self.module, "identity"):
            return self.module.identity(self.path, **self.options)
        files = [Path(self.path)]
        if hasattr(self.module, "files"):
            files = [Path(f) for f in self.module.files(self.path, **self.options)]
        hashes = [sha256(f) for f in files]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )


def source(path: str, format: str | Mapping[str, Mapping[str, Any]] = "auto") -> Source:
    """Finds what a name means and which format reads it; `format` is a name, or {name: options}.

    Raises `LorakitError` when there is no such thing, no format for it, or no such option.
    """
    if isinstance(format, Mapping) and len(format) != 1:
        raise LorakitError(
            f"format={dict(format)!r} is not one format with its options, e.g. format: {{csv: {{header: "
            "false}}"
        )
    ((name, options),) = format.items() if isinstance(format, Mapping) else [(format, {})]
    found, known = find(path), registry.modules("formats")
    if found and not found.is_file() and not found.is_dir():
        raise LorakitError(f"{path}: is a device or a pipe, expected a file or a folder")
    if name == "auto":
        ending = found.name.lower().removesuffix(".gz") if found else ""
        there = str(found or path)
        name = next(
            (n for n, m in known.items() if ending.endswith(m.SUFFIXES) and found.is_file()), None
        ) or next((n for n, m in known.items() if hasattr(m, "takes") and m.takes(there)), None)
        if name is None and found is None:
            raise _nothing(path)
        if name is None:
            endings = ", ".join(sorted(s for m in known.values() for s in m.SUFFIXES))
            raise LorakitError(
                f"{path}: no format reads '{found.suffix}'; known endings: {endings}. Name one with "
                "`format`, e.g. format: csv"
            )
    module = registry.load("formats", name)
    if found is None and not (hasattr(module, "takes") and module.takes(path)):
        raise _nothing(path)
    parameters = inspect.signature(module.read).parameters
    for option in options:
        if option not in [*parameters][1:]:
            raise LorakitError(
                f"format: {name} has no option '{option}'{did_you_mean(option, [*parameters][1:])} "
                f"(options: {', '.join([*parameters][1:]) or 'none'})"
            )
    missing = [n for n, p in [*parameters.items()][1:] if p.default is p.empty and n not in options]
    if missing:
        raise LorakitError(
            f"format: {name} needs the option '{missing[0]}', e.g. format: {{{name}: "
            f"{{{missing[0]}: …}}}}"
        )
    return Source(path, str(found or path), name, dict(options))


def _nothing(path: str) -> LorakitError:
    if Path(path).is_symlink():
        return LorakitError(f"{path}: is a link that leads to no file; name the file itself")
    return LorakitError(f"{path}: no such file (looked from {Path.cwd()})")


def stream(
    it: Source,
    report: DataReport,
    *,
    columns: Mapping[str, str] | None = None,
    gives: str | None = None,
) -> Iterator[Example | Rejected]:
    """Every row in its schema's terms, one at a time; `fields["columns"]` are the file's own.

    Raises `LorakitError` when nothing can be read, or the columns of the first rows fit no schema.
    """
    report.file, report.format = it.name, it.format
    rows = shown(it.read(), f"reading {Path(it.name).name}")
    head, readable, lines = [], [], iter(rows)
    for row in lines:
        head.append(row)
        if isinstance(row, Example):
            readable.append(row)
            if len(readable) == HEAD:
                break
    if not readable:
        first = (
            f"; the first: {head[0].where}: {head[0].reason}"
            if head
            else ": it is empty, or has a header alone"
        )
        raise LorakitError(f"{it.name}: no usable row{first}")
    _columns_exist(readable, columns or {})
    rename = _renamer(columns or {})
    report.schema, report.reason = find_schema(_renamed(readable, rename), gives, columns or {})
    schema = registry.load("schemas", report.schema)
    for row in chain(head, lines):
        report.rows += 1
        if isinstance(row, Example) and _deeper(row.fields, DEEP):
            row = Rejected(
                row.file, row.row, f"more than {DEEP} lists or objects inside each other"
            )
        if isinstance(row, Example):
            try:
                fields = schema.convert(rename(row.fields))
                if "media" in fields:
                    places = places_of(it, row)
                    fields["media"] = [
                        media.examined(m, schema.GIVES, places) for m in fields["media"]
                    ]
                row = row.with_fields({**fields, "columns": row.fields})
            except KeyError as error:
                row = Rejected(row.file, row.row, f"column {error} is missing")
            except BadRow as error:
                row = Rejected(row.file, row.row, str(error))
        yield row


def places_of(it: Source, row: Example) -> list[Path]:
    """The folders that a path in a row may start from: that of its file, and that of the data."""
    top = Path(it.path) if Path(it.path).is_dir() else Path(it.path).parent
    return list(dict.fromkeys([(top.absolute().parent / row.file).parent, top]))


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other more than so many levels deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(v, levels - 1) for v in inside if isinstance(v, (dict, list)))


def load(
    it: Source | str,
    *,
    columns: Mapping[str, str] | None = None,
    gives: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> tuple[Sequence[Example], DataReport]:
    """Every usable row in its schema's terms, put aside on disk, and a report that names the others.

    `columns` maps a schema's name to the file's column, or to a text with columns in braces; `gives` restricts the
    schemas to one task's field. Of more than `max_rows` a sample of so many is kept, in the file's order.
    """
    it = source(it) if isinstance(it, str) else it
    report = DataReport(file=it.name, sha256=it.identity)

    def usable() -> Iterator[Example]:
        for row in stream(it, report, columns=columns, gives=gives):
            if isinstance(row, Rejected):
                report.rejected.append(row)
            else:
                yield row

    examples = Examples(usable())
    if not len(examples):
        bad = report.rejected[0]
        raise LorakitError(f"{it.name}: no usable row; the first: {bad.where}: {bad.reason}")
    if max_rows is None or len(examples) <= max_rows:
        return examples, report
    report.notes.append(
        f"max_rows={max_rows}: a sample of {max_rows:,} of the {len(examples):,} usable rows"
    )
    drawn = np.random.default_rng((seed, 3)).choice(len(examples), max_rows, replace=False)
    return Chosen(examples, np.sort(drawn)), report


def _columns_exist(rows: Sequence[Example], columns: Mapping[str, str]) -> None:
    present = {column for row in rows for column in row.fields}
    known = {
        n
        for m in registry.modules("schemas").values()
        for names in (*m.REQUIRED, m.OPTIONAL)
        for n in names
    }
    for name, column in columns.items():
        if name not in known:
            raise LorakitError(
                f"columns: no schema has '{name}'{did_you_mean(name, known)} (they have "
                f"{', '.join(sorted(known))})"
            )
        for wanted in holes(column) if "{" in column else [column]:
            if wanted not in present:
                raise LorakitError(
                    f"{rows[0].file}: columns names '{wanted}', which no row has"
                    f"{did_you_mean(wanted, present)} (columns: {', '.join(sorted(present))})"
                )


def _renamer(columns: Mapping[str, str]) -> Callable[[dict], dict]:
    """Fields with the schema's names in place of the file's; a row that lacks a column lacks the schema's name too."""
    if not columns:
        return lambda fields: fields
    # Who says what the answer is does not mean another column that could be one.
    slots = [names for m in registry.modules("schemas").values() for names in m.REQUIRED]
    hidden = {other for names in slots for name in columns if name in names for other in names}

    def rename(fields: dict) -> dict:
        kept = {k: v for k, v in fields.items() if k not in hidden and k not in columns}
        for name, column in columns.items():
            if "{" in column:
                kept[name] = fill(column, fields)
            elif column in fields:
                kept[name] = fields[column]
        return kept

    return rename


def _renamed(rows: Iterable[Example], rename: Callable[[dict], dict]) -> list[Example]:
    out = []
    for row in rows:
        try:
            out.append(row.with_fields(rename(row.fields)))
        except BadRow:
            continue
    return out or list(rows)


def find_schema(
    rows: Sequence[Example], gives: str | None = None, mapped: Iterable[str] = ()
) -> tuple[str, str]:
    """(schema, reason in words). The schema with the most names that the user mapped wins, then the one that explains
    the most columns of the most rows."""
    columns = Counter(name for row in rows for name in row.fields)
    common = {name for name, n in columns.items() if n * 2 > len(rows)}
    schemas = {n: m for n, m in registry.modules("schemas").items() if gives in (None, m.GIVES)}
    fits = {n: m for n, m in schemas.items() if all(common & set(names) for names in m.REQUIRED)}
    if not fits:
        wanted = "; ".join(
            f"{n}: {' + '.join('/'.join(c) for c in m.REQUIRED)}" for n, m in schemas.items()
        )
        raise LorakitError(
            f"{rows[0].file}: the columns {', '.join(sorted(columns)) or '(none)'} fit no schema ({wanted}). "
            "Name them with `columns`, e.g. columns: {prompt: question_text, answer: solution}"
        )

    def rank(name: str) -> tuple[int, int]:
        names = {n for slot in (*fits[name].REQUIRED, fits[name].OPTIONAL) for n in slot}
        return len(names.intersection(mapped)), len(fits[name].REQUIRED)

    name = max(fits, key=rank)
    found = dict.fromkeys(next(c for c in names if c in common) for names in fits[name].REQUIRED)
    return name, f"schema {name}, because the rows have {' and '.join(map(repr, found))}"


def text(example: Example) -> str:
    """All the words of an example, for comparisons."""
    fields = example.fields
    turns = fields.get("messages") or fields.get("turns")
    if not turns:
        return "\n".join(filter(None, (fields.get("question"), fields["text"])))
    if "pair" in fields:
        turns = [*turns, fields["pair"]["rejected"]]
    return "\n".join(m.get("content") or json.dumps(m.get("tool_calls")) for m in turns)


def normal(words: str) -> str:
    """Case and white space aside."""
    return " ".join(words.casefold().split())


def fingerprint(example: Example) -> int:
    """64 bits that equal examples share."""
    content = (medium["sha256"] for medium in example.fields.get("media", ()))
    words = "\n".join([normal(text(example)), *content]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest())


def duplicates(fingerprints: Sequence[int] | np.ndarray) -> dict[int, int]:
    """Index of every exact repetition -> index of the first."""
    _, first, group = np.unique(
        np.asarray(fingerprints, dtype=np.uint64), return_index=True, return_inverse=True
    )
    again = np.flatnonzero(first[group] != np.arange(len(group)))
    return {int(i): int(first[group[i]]) for i in again}


def joined(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(n,) for each of n things the smallest index among those it is linked to, directly or by others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(list(pairs), dtype=np.int64).reshape(-1, 2)
    _, group = connected_components(
        coo_array((np.ones(len(ends), bool), ends.T), shape=(n, n)), directed=False
    )
    return np.unique(group, return_index=True)[1][group]


def near_pairs(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Pairs of near duplicates, enough of them to link each with all it resembles."""
    if len(examples) and "media" in examples[0].fields:  # their words repeat, their pictures do not
        first = [example.fields["media"][0]["look"] for example in examples]
        return media.alike(first)
    return minhash.pairs(
        (normal(text(example)) for example in shown(examples, "near duplicates")), NEAR
    )


def classes(examples: Iterable[Example], report: DataReport) -> list[str] | None:
    """The label of each example; else its answer, where few short answers come again and again; else None.

    Raises `LorakitError` when all labels are the same.
    """
    found: list[str] = []
    kinds: dict[str, str] = {}
    labels = 0
    for example in examples:
        fields = example.fields
        labels += "label" in fields
        answer = (
            fields["label"]
            if "label" in fields
            else fields.get("messages", [{}])[-1].get("content")
        )
        if not answer or (
            "label" not in fields and (len(answer) > CLASS_LENGTH or len(kinds) > CLASSES)
        ):
            return None
        found.append(kinds.setdefault(answer, answer))
    if labels and len(kinds) == 1:
        raise LorakitError(
            f"{report.file}: every row has the label {found[0]!r}: there is nothing to tell apart"
        )
    return found if labels or len(kinds) <= len(found) / 10 else None


def split(
    examples: Sequence[Example],
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    group_by: str | None = None,
    given: Mapping[str, Sequence[Example]] | None = None,
    report: DataReport | None = None,
    folds: int | None = None,
    fold: int | None = None,
) -> dict[str, Sequence[Example]]:
    """Three sets by seed; `given` holds sets that have a file of their own. The test rows are one of so many `folds`;
    with no `fold` named there are none.

    Equal rows are dropped, near duplicates and rows with the same value of `group_by` stay in one set, and every set
    has its share of each class. A row of `examples` that resembles a given validation or test row is left out of
    training. All of it is noted in `report`.
    """
    report = report if report is not None else DataReport(file=examples[0].file)
    # Given sets first, test before validation: of equal rows the first stays.
    parts = {name: (given or {}).get(name, ()) for name in ("test", "validation")} | {"": examples}
    pool = Joined(*parts.values())
    owner = np.repeat(np.arange(3), [len(p) for p in parts.values()])
    names = list(parts)
    repeats = duplicates([fingerprint(row) for row in shown(pool, "exact duplicates")])
    for i, first in repeats.items():
        report.rejected.append(Rejected(pool[i].file, pool[i].row, f"repeats {pool[first].where}"))
    if (
        len(examples)
        and "media" in examples[0].fields
        and not group_by
        and not (given or {}).get("test")
    ):
        report.notes.append(LEAK)
    kept = np.delete(np.arange(len(pool)), list(repeats))
    together = _groups(Chosen(pool, kept), group_by, seed, report)
    sets: dict[str, list[int]] = {name: [] for name in SETS}
    members: dict[int, list[int]] = defaultdict(list)
    taken: dict[int, tuple[str, int]] = {}  # group -> the given set that holds it, its first row
    for i, group in zip(kept.tolist(), together.tolist(), strict=True):
        name = names[owner[i]]
        home, first = taken.setdefault(group, (name, i)) if name else taken.get(group, ("", 0))
        if home != name:
            report.rejected.append(
                Rejected(pool[i].file, pool[i].row, f"resembles {pool[first].where}, a {home} row")
            )
        else:
            (sets[name] if name else members[group]).append(i)
    if not members and len(examples):
        raise LorakitError(
            f"{report.file}: no row is left to train on: each stands in the rows given for "
            f"{' or '.join(n for n in SETS if sets[n])} too, or resembles one there; name other rows"
        )
    fractions = {
        name: 0 if len(parts[name]) else share
        for name, share in (("test", test_fraction), ("validation", validation_fraction))
    }
    groups = list(members.values())
    if folds:
        fractions["test"] = 0
        parted = _folds(groups, pool, folds, seed, report)
        groups = [group for i, part in enumerate(parted, 1) if i != fold for group in part]
        sets["test"] = [i for group in parted[fold - 1] for i in group] if fold else []
    for name, rows in _deal(groups, pool, fractions, seed, report).items():
        sets[name] += rows
    report.sets = {name: len(rows) for name, rows in sets.items()}
    return {name: Chosen(pool, np.asarray(rows, dtype=np.int64)) for name, rows in sets.items()}


def _groups(
    rows: Sequence[Example], group_by: str | None, seed: int, report: DataReport
) -> np.ndarray:
    """For each row the first of those that have to stay with it."""
    sample = np.arange(len(rows))
    if len(rows) > NEAR_ROWS:
        sample = np.sort(
            np.random.default_rng((seed, 2)).choice(len(rows), NEAR_ROWS, replace=False)
        )
        report.notes.append(
            f"near duplicates were looked for among {NEAR_ROWS:,} of the {len(rows):,} rows"
        )
    pairs = [(sample[a], sample[b]) for a, b in near_pairs(Chosen(rows, sample))]
    report.near_duplicates = len(rows) - len(np.unique(joined(len(rows), pairs)))
    if group_by:
        first: dict[str, int] = {}
        for i, row in enumerate(rows):
            value = row.fields["columns"].get(group_by)
            if value is not None:
                pairs.append((first.setdefault(json.dumps(value, default=str), i), i))
        if not first:
            known = sorted({name for row in rows for name in row.fields["columns"]})
            raise LorakitError(
                f"group_by={group_by!r}: no row has that column{did_you_mean(group_by, known)} "
                f"(columns: {', '.join(known)})"
            )
    return joined(len(rows), pairs)


def _deal(
    groups: list[list[int]],
    pool: Sequence[Example],
    fractions: Mapping[str, float],
    seed: int,
    report: DataReport,
) -> dict[str, list[int]]:
    """Whole groups to the sets, in seeded order, each class up to its share of each set; the rest trains."""
    flat = [i for group in groups for i in group]
    kinds = classes((pool[i] for i in flat), report) if flat else None
    kind = dict(zip(flat, kinds or [""] * len(flat), strict=True))
    sizes = Counter(kind.values())
    wanted = {}
    for name, fraction in fractions.items():
        wanted[name] = _shares(sizes, max(1, round(len(flat) * fraction)) if fraction else 0)
    if kinds and len(sizes) > 1:
        report.notes.append(f"each set has its share of the {len(sizes)} classes")
    sets: dict[str, list[int]] = {name: [] for name in SETS}
    left = []  # groups that train
    for group in (groups[g] for g in np.random.default_rng(seed).permutation(len(groups))):
        needs = Counter(kind[i] for i in group)
        home = next(
            (n for n, room in wanted.items() if all(room[k] >= c for k, c in needs.items())), None
        )
        if home:
            sets[home] += group
            wanted[home].subtract(needs)
        else:
            left.append(group)
    for name in wanted:
        smallest = min(left, key=len, default=[])
        if fractions[name] and not sets[name] and len(left) > 2 and len(smallest) <= len(flat) / 3:
            sets[name] = smallest  # few large groups: one of them, rather than none
            left.remove(smallest)
        if fractions[name] and not sets[name]:
            raise LorakitError(
                f"{report.file}: {len(flat)} rows in {len(groups)} groups leave no {name} row; "
                f"add rows, raise {name}_fraction, name {name}_data, or set {name}_fraction to 0"
            )
    sets["train"] = [i for group in left for i in group]
    if not sets["train"]:
        raise LorakitError(
            f"{report.file}: no row is left to train on ({len(flat)} rows in {len(groups)} groups); "
            "add rows"
        )
    return sets


def _folds(
    groups: list[list[int]], pool: Sequence[Example], count: int, seed: int, report: DataReport
) -> list[list[list[int]]]:
    """Whole groups in so many parts, each class spread evenly: a group goes where there are the fewest like it."""
    if len(groups) < count:
        raise LorakitError(
            f"{report.file}: {len(groups)} groups of rows cannot be parted into folds={count}; lower it"
        )
    flat = [i for group in groups for i in group]
    kind = dict(
        zip(
            flat,
            classes((pool[i] for i in flat), DataReport(report.file)) or [""] * len(flat),
            strict=True,
        )
    )
    parts: list[list[list[int]]] = [[] for _ in range(count)]
    held: list[Counter] = [Counter() for _ in range(count)]
    order = np.random.default_rng((seed, 4)).permutation(len(groups))
    for group in sorted((groups[g] for g in order), key=len, reverse=True):
        mine = Counter(kind[i] for i in group)
        fewest = min(
            range(count),
            key=lambda p: (sum(held[p][k] * n for k, n in mine.items()), held[p].total()),
        )
        parts[fewest].append(group)
        held[fewest] += mine
    report.notes.append(
        f"{count} folds of {min(map(Counter.total, held))} to {max(map(Counter.total, held))} rows"
    )
    return parts


def _shares(sizes: Mapping[str, int], total: int) -> Counter:
    """`total` rows dealt to classes in proportion, by largest remainder."""
    exact = {k: total * n / max(1, sum(sizes.values())) for k, n in sizes.items()}
    shares = Counter({k: int(x) for k, x in exact.items()})
    for k in sorted(exact, key=lambda k: shares[k] - exact[k])[: total - shares.total()]:
        shares[k] += 1
    return shares


def shuffle_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """The same prompts with all answers dealt anew by seed: what a control run trains on."""
    if any("messages" not in e.fields for e in examples):
        raise LorakitError(
            "shuffle_answers=True needs conversations; leave it out for plain text, pictures and sound"
        )
    if all("pair" in e.fields for e in examples):
        return swap_answers(examples, seed)
    answers = [m for e in examples for m in e.fields["messages"] if m["role"] == "assistant"]
    dealt = (answers[i] for i in np.random.default_rng((seed, 1)).permutation(len(answers)))
    return [
        e.with_fields(
            {
                **e.fields,
                "messages": [
                    next(dealt) if m["role"] == "assistant" else m for m in e.fields["messages"]
                ],
            }
        )
        for e in examples
    ]


def swap_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """The same pairs, in half of which the answers have changed places: a control of preferences."""
    swapped = np.random.default_rng((seed, 1)).random(len(examples)) < 0.5
    out = []
    for example, swap in zip(examples, swapped, strict=True):
        fields = example.fields
        if swap:
            *turns, chosen = fields["messages"]
            fields = fields | {
                "messages": [*turns, fields["pair"]["rejected"]],
                "pair": {"rejected": chosen},
            }
        out.append(example.with_fields(fields))
    return out


def prepare(
    sources: Mapping[str, Source],
    *,
    columns: Mapping[str, str] | None = None,
    gives: str | None = None,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_rows: int | None = None,
    group_by: str | None = None,
    shuffled: bool = False,
    folds: int | None = None,
    fold: int | None = None,
) -> tuple[dict[str, Sequence[Example]], DataReport]:
    """The three sets of a run and what was found on the way. `sources`: `train`, and sets with a file of their own."""
    some = {"columns": columns, "max_rows": max_rows, "seed": seed}
    examples, report = load(sources["train"], gives=gives, **some)
    given: dict[str, Sequence[Example]] = {}
    for name in [n for n in ("validation", "test") if n in sources]:
        given[name], other = load(
            sources[name], gives=registry.load("schemas", report.schema).GIVES, **some
        )
        report.notes += [f"{name} rows: {line}" for line in (other.lines()[0], *other.notes)]
        report.rejected += other.rejected
    report.sha256 = with_media(identity(sources), examples)
    sets = split(
        examples,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        group_by=group_by,
        given=given,
        report=report,
        folds=folds,
        fold=fold,
    )
    if shuffled:
        sets["train"] = shuffle_answers(sets["train"], seed)
        sets["validation"] = shuffle_answers(sets["validation"], seed)
        report.notes.append(
            "control: the answers of the training and validation rows are dealt at random"
        )
    return sets, report


def sources(
    data: str,
    validation_data: str | None = None,
    test_data: str | None = None,
    format: str | Mapping = "auto",
) -> dict[str, Source]:
    """The files of a run by the set they are for; `format` also holds for others of the same ending."""
    found = {"train": source(data, format)}
    for name, path in (("validation", validation_data), ("test", test_data)):
        if path:
            found[name] = source(path, format if Path(path).suffix == Path(data).suffix else "auto")
    return found


def media_paths(sets: Mapping[str, Sequence[Example]]) -> list[str]:
    """The files of pictures and sounds that rows name."""
    if not len(sets["train"]) or "media" not in sets["train"][0].fields:
        return []
    return [
        m["path"]
        for rows in sets.values()
        for row in rows
        for m in row.fields["media"]
        if "path" in m
    ]


def with_media(content: str, examples: Sequence[Example]) -> str:
    """What the content is known by, the pictures and sounds that a table names included."""
    if "media" not in examples[0].fields:
        return content
    hashes = (m["sha256"] for row in examples for m in row.fields["media"])
    return hashlib.sha256("".join([content, *hashes]).encode()).hexdigest()


def identity(sources: Mapping[str, Source]) -> str:
    """What the content of all of them is known by."""
    parts = [sources[name].identity for name in SETS if name in sources]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
