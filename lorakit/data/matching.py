"""What the columns of a file mean: the schema that its rows fit, and what each column is used for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError, did_you_mean
from lorakit.data import advice, kinds, meanings, split_column
from lorakit.data.example import Example
from lorakit.data.meanings import Choices, canonical
from lorakit.data.report import listed
from lorakit.data.schemas import fill, held, holes, prompts, value_of
from lorakit.run import Run

COMMON = ("answer", "prompt", "text", "label", "messages", "chosen", "rejected", "image")


@dataclass(frozen=True)
class Match:
    """The schema of a file and what becomes of its columns."""

    schema: str
    reason: str
    used: dict[str, str]  # the file's column -> the schema's name that it stands for
    unused: list[str]
    rename: Callable[[dict[str, Any]], dict[str, Any]]
    reject: Callable[[Mapping[str, Any]], str]  # why a row is marked as bad, "" when it is not


def match(rows: Sequence[Example], gives: str | None, choices: Choices) -> Match:
    """The schema that readable rows fit. Raises `LorakitError` for a column that may change what a row means.

    Column names match regardless of case, blanks and hyphens.
    """
    check_columns(rows, choices)
    aliases = aliases_of(rows)
    rename = renamer(choices.columns, aliases)
    known = renamed(rows, rename)
    schema, reason = find_schema(known, gives, choices.columns, rows)
    module = registry.load("schemas", schema)
    if hasattr(module, "refuse"):
        module.refuse([row.fields for row in known])
    present = dict.fromkeys(str(name) for row in rows for name in row.fields)
    used: dict[str, str] = {}
    for name in uses(module, known):
        column = choices.columns.get(name, aliases.get(name, name))
        for one in holes(column) if "{" in column else [column]:
            used.setdefault(one if one in present else one.partition(".")[0], name)
    used |= {c: "keep_rows" for c in choices.keep_rows}
    unused = [c for c in present if c not in used]
    for column in unused:
        values = [row.fields[column] for row in rows if column in row.fields]
        if column not in choices.ignore_columns and split_column.named(column, values):
            used[column] = split_column.MEANS
            unused.remove(column)
            break
    verdicts = meanings.judge(
        rows, module, unused, choices, siblings(choices.columns), gives is not None
    )
    used |= dict.fromkeys(verdicts, "marks bad rows")
    return Match(
        schema,
        reason,
        used,
        [c for c in unused if c not in verdicts],
        rename,
        meanings.rejecter(verdicts, choices.keep_rows),
    )


def aliases_of(rows: Sequence[Example]) -> dict[str, str]:
    """A schema's name -> the one column of the file that is it but for case, blanks and hyphens."""
    present = {c for row in rows for c in row.fields if isinstance(c, str)}
    found: dict[str, list[str]] = {}
    for column in sorted(present):
        if (name := canonical(column)) != column and name not in present and name in names_known():
            found.setdefault(name, []).append(column)
    return {name: columns[0] for name, columns in found.items() if len(columns) == 1}


def names_known() -> set[str]:
    """Every name of every schema."""
    return {
        n
        for m in registry.modules("schemas").values()
        for names in (*m.REQUIRED, m.OPTIONAL)
        for n in names
    }


def check_columns(rows: Sequence[Example], choices: Choices) -> None:
    """Raises `LorakitError` for a setting about a column that is not there."""
    present = {str(column) for row in rows for column in row.fields}
    known = names_known()
    shown = ", ".join(sorted(present))
    for name, column in choices.columns.items():
        if name not in known:
            raise LorakitError(
                f"columns: no schema has '{name}'{did_you_mean(name, known)} (they have "
                f"{listed(COMMON, quoted=False)})"
            )
        for wanted in holes(column) if "{" in column else [column]:
            if wanted not in present and not any(held(row.fields, wanted) for row in rows):
                raise LorakitError(
                    f"{rows[0].file}: columns names '{wanted}', which no row has"
                    f"{did_you_mean(wanted, present)} (columns: {shown})"
                )
    for setting in ("keep_rows", "ignore_columns"):
        for wanted in getattr(choices, setting):
            if wanted not in present:
                raise LorakitError(
                    f"{setting} names {wanted!r}, which no row has"
                    f"{did_you_mean(wanted, present)} (columns: {shown})",
                    where=rows[0].file,
                    setting=setting,
                    value=wanted,
                )


def siblings(columns: Mapping[str, str]) -> set[str]:
    """Names of the slots that the user filled: who says what the answer is does not mean another column."""
    slots = [names for m in registry.modules("schemas").values() for names in m.REQUIRED]
    return {other for names in slots for name in columns if name in names for other in names}


def renamer(
    columns: Mapping[str, str], aliases: Mapping[str, str] | None = None
) -> Callable[[dict], dict]:
    """Fields with the schema's names in place of the file's; a row that lacks a column lacks the schema's name too."""
    if not columns and not aliases:
        return lambda fields: fields
    hidden = siblings(columns) | set(columns)
    back = {column: name for name, column in (aliases or {}).items()}

    def rename(fields: dict) -> dict:
        named = ((back.get(k, k), v) for k, v in fields.items())
        kept = {k: v for k, v in named if k not in hidden}
        for name, column in columns.items():
            if "{" in column:
                kept[name] = fill(column, fields)
            elif held(fields, column):
                kept[name] = value_of(fields, column)
        return kept

    return rename


def renamed(rows: Iterable[Example], rename: Callable[[dict], dict]) -> list[Example]:
    out = []
    for row in rows:
        try:
            out.append(row.with_fields(rename(row.fields)))
        except BadRow:
            continue
    return out or list(rows)


def uses(module: ModuleType, rows: Sequence[Example]) -> list[str]:
    """The schema's names that the conversion of these rows reads."""
    found: dict[str, None] = {}
    optional = set(module.OPTIONAL)
    for row in rows:
        for names in module.REQUIRED:
            found.update(dict.fromkeys(next(([n] for n in names if n in row.fields), [])))
        letters = prompts.lettered(row.fields)
        found.update(
            dict.fromkeys(
                n
                for n in row.fields
                if n in optional and (n not in prompts.LETTERS or n in letters)
            )
        )
    return list(found)


def find_schema(
    rows: Sequence[Example],
    gives: str | None = None,
    mapped: Iterable[str] = (),
    given: Sequence[Example] | None = None,
) -> tuple[str, str]:
    """(schema, reason in words). The schema with the most names that the user mapped wins, then the richest form.

    `given` are the same rows with the file's own names, for what is said where no schema fits.
    """
    columns = Counter(name for row in rows for name in row.fields)
    common = {name for name, n in columns.items() if n * 2 > len(rows)}
    schemas = {n: m for n, m in registry.modules("schemas").items() if gives in (None, m.GIVES)}
    fits = {
        n: m
        for n, m in schemas.items()
        if _fitting(rows, m) * 2 > len(rows) and (not hasattr(m, "fits") or m.fits(rows))
    }
    kinds.refuse_by_name(rows, common, fits)
    if not fits:
        own = given or rows
        raise advice.no_schema(own, Counter(n for row in own for n in row.fields), schemas)

    def rank(name: str) -> tuple[int, int]:
        names = {n for slot in (*fits[name].REQUIRED, fits[name].OPTIONAL) for n in slot}
        return len(names.intersection(mapped)), fits[name].RICHNESS

    name = max(fits, key=rank)
    found = dict.fromkeys(max(names, key=lambda c: columns[c]) for names in fits[name].REQUIRED)
    reason = f"schema {name}, because the rows have {' and '.join(map(repr, found))}"
    losers = [
        c
        for n, m in fits.items()
        if n != "templated"
        for names in m.REQUIRED
        for c in names
        if c in common and c not in found and c not in fits[name].OPTIONAL
    ]
    if losers:
        reason += (
            f", which say more than {listed(dict.fromkeys(losers))} (`columns` decides otherwise)"
        )
    return name, reason


def _fitting(rows: Sequence[Example], schema: ModuleType) -> int:
    """How many of these rows have a name of every slot; a list of pictures that is empty in every row is none."""
    empty = {
        n
        for n in schema.REQUIRED[0]
        if schema.GIVES in ("image", "sound") and all(row.fields.get(n) == [] for row in rows)
    }
    return sum(
        all(any(n in row.fields and n not in empty for n in names) for names in schema.REQUIRED)
        for row in rows
    )


def columns_of(run: Run) -> dict[str, Any]:
    """The settings of a run that decide what its columns mean."""
    return {
        "columns": run.columns,
        "keep_rows": run.keep_rows,
        "ignore_columns": run.ignore_columns,
    }
