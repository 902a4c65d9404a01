"""Rows to training, validation and test sets: equal rows are dropped, near duplicates stay in one set."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.data.duplicates import (
    NEAR,
    duplicates,
    fingerprint,
    joined,
    near_pairs,
    prompt_key,
    same_prompt,
)
from lorakit.data.example import Chosen, Example, Joined, Rejected
from lorakit.data.report import DataReport, shown
from lorakit.data.sources import SETS

NEAR_ROWS = 50_000  # of more rows, a sample of so many is searched for near duplicates
LEAK = (
    "no group_by: shots of one leaf, or one speaker's recordings, may stand in training and test rows alike, and a "
    "score is too good then; name the column that tells them apart"
)
# Answers so few and so short (characters) are classes, and the split keeps their shares.
CLASSES, CLASS_LENGTH = 20, 64


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
    near: float | None = NEAR,
) -> dict[str, Sequence[Example]]:
    """Three sets by seed; `given` holds sets that have a file of their own. The test rows are one of so many `folds`;
    with no `fold` named there are none.

    Equal rows are dropped. Near duplicates (an index of `near` at least; None: not searched for), rows of an equal
    prompt and rows with the same value of `group_by` stay in one set, and every set has its share of each class. A row
    of `examples` that resembles a given validation or test row is left out of training. All of it is noted in `report`.
    """
    report = report if report is not None else DataReport(file=examples[0].file)
    # Given sets first, test before validation: of equal rows the first stays.
    parts = {name: (given or {}).get(name, ()) for name in ("test", "validation")} | {"": examples}
    pool = Joined(*parts.values())
    owners = [name for name, part in parts.items() for _ in range(len(part))]
    prints, keys = np.empty((2, len(pool)), np.uint64)
    for i, row in enumerate(shown(pool, "exact duplicates")):
        prints[i], keys[i] = fingerprint(row), prompt_key(row)
    repeats = duplicates(prints)
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
    together = _groups(Chosen(pool, kept), keys[kept], group_by, seed, report, near)
    sets, groups = _given_sets(pool, kept.tolist(), together.tolist(), owners, report)
    if not groups and len(examples):
        raise LorakitError(
            f"{report.file}: no row is left to train on: each stands in the rows given for "
            f"{' or '.join(n for n in SETS if sets[n])} too, or resembles one there; name other rows"
        )
    fractions = {
        name: 0 if len(parts[name]) else share
        for name, share in (("test", test_fraction), ("validation", validation_fraction))
    }
    if folds:
        fractions["test"] = 0
        parted = _folds(groups, pool, folds, seed, report)
        groups = [group for i, part in enumerate(parted, 1) if i != fold for group in part]
        sets["test"] = [i for group in parted[fold - 1] for i in group] if fold else []
    for name, rows in _deal(groups, pool, fractions, seed, report).items():
        sets[name] += rows
    report.sets = {name: len(rows) for name, rows in sets.items()}
    return {name: Chosen(pool, np.asarray(rows, dtype=np.int64)) for name, rows in sets.items()}


def _given_sets(
    pool: Sequence[Example],
    kept: list[int],
    together: list[int],
    owners: list[str],
    report: DataReport,
) -> tuple[dict[str, list[int]], list[list[int]]]:
    """(rows of the sets that have a file of their own, groups of the other rows).

    `together`: the group of each row kept, `owners`: the given set that a row is of, or "". A row that resembles one
    of a given set is left out of the others.
    """
    sets: dict[str, list[int]] = {name: [] for name in SETS}
    members: dict[int, list[int]] = defaultdict(list)
    taken: dict[int, tuple[str, int]] = {}  # group -> the given set that holds it, its first row
    for i, group in zip(kept, together, strict=True):
        name = owners[i]
        home, first = taken.setdefault(group, (name, i)) if name else taken.get(group, ("", 0))
        if home != name:
            reason = f"resembles {pool[first].where}, a {home} row"
            report.rejected.append(Rejected(pool[i].file, pool[i].row, reason))
        else:
            (sets[name] if name else members[group]).append(i)
    return sets, list(members.values())


def _groups(
    rows: Sequence[Example],
    prompts: np.ndarray,
    group_by: str | None,
    seed: int,
    report: DataReport,
    near: float | None = NEAR,
) -> np.ndarray:
    """For each row the first of those that have to stay with it; `prompts` are their keys."""
    sample = np.arange(len(rows) if near is not None else 0)
    if near is None:
        report.notes.append("near duplicates were not searched for (near_duplicates: off)")
    if len(sample) > NEAR_ROWS:
        sample = np.sort(
            np.random.default_rng((seed, 2)).choice(len(rows), NEAR_ROWS, replace=False)
        )
        report.notes.append(
            f"near duplicates were looked for among {NEAR_ROWS:,} of the {len(rows):,} rows"
        )
    found = near_pairs(Chosen(rows, sample), near or NEAR) if len(sample) else []
    pairs = [(int(sample[a]), int(sample[b])) for a, b in found]
    pairs += [(int(a), int(b)) for a, b in same_prompt(prompts)]
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
    whence = [pool[i].fields.get("source", "") for i in flat]
    mixture = len({*whence}) > 1
    if mixture:  # each set has its share of each file
        kinds = list(map(" ".join, zip(whence, kinds or whence, strict=True)))
    kind = dict(zip(flat, kinds or [""] * len(flat), strict=True))
    sizes = Counter(kind.values())
    wanted = {}
    for name, fraction in fractions.items():
        wanted[name] = _shares(sizes, max(1, round(len(flat) * fraction)) if fraction else 0)
    if kinds and len(sizes) > 1:
        what = "files" if mixture else f"{len(sizes)} classes"
        report.notes.append(f"each set has its share of the {what}")
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
    if all("desirable" in e.fields for e in examples):
        order = np.random.default_rng((seed, 1)).permutation(len(examples))
        marks = [examples[i].fields["desirable"] for i in order]
        return [
            e.with_fields({**e.fields, "desirable": m})
            for e, m in zip(examples, marks, strict=True)
        ]
    answers = [m for e in examples for m in e.fields["messages"] if m["role"] == "assistant"]
    dealt = {}
    for calls in (False, True):  # a result follows a call in the control, too
        some = [m for m in answers if ("tool_calls" in m) == calls]
        order = np.random.default_rng((seed, 1)).permutation(len(some))
        dealt[calls] = iter([some[i] for i in order])
    return [
        e.with_fields(
            {
                **e.fields,
                "messages": [
                    next(dealt["tool_calls" in m]) if m["role"] == "assistant" else m
                    for m in e.fields["messages"]
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
