"""What the columns of a file mean: the schema that its rows fit, and the user's own names for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError, did_you_mean
from lorakit.data.example import Example
from lorakit.data.schemas import fill, holes


def check_columns(rows: Sequence[Example], columns: Mapping[str, str]) -> None:
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


def renamer(columns: Mapping[str, str]) -> Callable[[dict], dict]:
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


def renamed(rows: Iterable[Example], rename: Callable[[dict], dict]) -> list[Example]:
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
