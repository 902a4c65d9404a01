"""What the columns of a row mean, one module each.

Contract: `GIVES`, what a task asks for (`messages`, `text`, or what comes with the words: `image`, `sound`);
`REQUIRED`, a tuple of columns, each a tuple of the names it may have; `OPTIONAL`, names of columns that are used where
they are; `convert(fields)` returns plain JSON values, `{GIVES: …}` (of pictures and sounds a list of them, `media`,
with `text` or `turns`) and, where the schema knows the row's class (it says so by `LABELS`), `label` (a str), or raises
`BadRow` saying what is wrong. `RICHNESS` ranks the schemas that a file fits: a conversation says more than a question
and its answer, these more than plain text. Of a slot's names the first that is there is used: the richest comes first.
Optional: `fits(rows)`, whether the values, not the names alone, are of this form.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from lorakit.common.errors import BadRow, LorakitError, did_you_mean

HELPERS = ("prompts", "marks")  # modules of this package that are no schemas
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
# Columns of what the model is told before everything else.
SYSTEM = (
    "system", "system_prompt", "system_message", "sys_prompt", "system_instruction",
    "systeminstruction",
)  # fmt: skip
ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=\w+)?\)", re.DOTALL)
HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def column(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of these names that the row has. Raises `BadRow` when it has none."""
    for name in names:
        if name in fields:
            return name
    others = f" (or {', '.join(names[1:5])})" if names[1:] else ""
    raise BadRow(f"column {names[0]!r}{others} is missing")


def text_of(
    fields: Mapping[str, Any], names: tuple[str, ...], *, empty: bool = False, number: bool = False
) -> str:
    """The text of the first of these columns that is there. Raises `BadRow` when missing, null, blank or not text.

    With `empty` it may be missing, null or blank; with `number` it may be a number.
    """
    if empty and fields.keys().isdisjoint(names):
        return ""
    name = column(fields, names)
    value = fields[name]
    if value is None or value != value:  # NaN is the null of tables
        if empty:
            return ""
        raise BadRow(f"{name!r} is {'null' if value is None else 'NaN'}")
    if number and type(value) in (int, float):
        return number_text(value)
    if number and isinstance(value, bool):
        word = str(value).lower()
        raise BadRow(
            f"{name!r} is {word}, expected text: write the word to be said, e.g. {'yes' if value else 'no'}"
        )
    if not isinstance(value, str):
        raise BadRow(f"{name!r} is {type(value).__name__}, expected text")
    if not empty and not value.strip():
        raise BadRow(f"{name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name!r} holds half a character (a lone surrogate)") from None
    return value


def number_text(value: float) -> str:
    """A number as it is written: 58.0 is 58, as tables with gaps store whole numbers as floats."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if whole else value)


def medium_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """A path, or the bytes of a picture or sound as `datasets` stores them. Raises `BadRow` for what is neither."""
    name = column(fields, names)
    value = fields[name]
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{name!r} holds {len(value)} of them, expected one")
        value = value[0]
    held = isinstance(value, dict) and (value.get("bytes") or value.get("path"))
    if not held and not (isinstance(value, str) and value.strip()):
        raise BadRow(f"{name!r} is {type(value).__name__}, expected a path")
    return value


def ends(value: Any, endings: tuple[str, ...]) -> bool:
    """Whether a value is the name of a file with one of these endings."""
    return isinstance(value, str) and value.lower().endswith(endings)


def turns(prompt: str, answer: str, system: str = "") -> dict[str, list[dict[str, str]]]:
    """One question and its answer as `messages`, after what the model is told, where it is told something."""
    first = [{"role": "system", "content": system}] if system.strip() else []
    return {
        "messages": [
            *first,
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }


def nested(value: Any) -> Any:
    """A list or an object that a table holds as text, as JSON or as Python prints it; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    # NumPy prints array([…], dtype=object), and no commas between the objects of an array.
    printed = ARRAY.sub(r"\1", re.sub(r"\}\s*\n\s*\{", "}, {", value.strip()))
    try:
        found = ast.literal_eval(printed)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value
    return found if isinstance(found, (list, dict)) else value


def holes(template: str) -> list[str]:
    """The columns that a template names. Raises `LorakitError` for a brace without its partner."""
    found = [(match[0], match[1]) for match in HOLE.finditer(template)]
    for brace, name in found:
        if name is None and len(brace) == 1:
            raise LorakitError(
                f"the template {template!r} has a single '{brace}'; write '{brace * 2}' for the "
                "character, {name} for a column"
            )
    return [name for _, name in found if name is not None]


def held(fields: Mapping[str, Any], path: str) -> bool:
    """Whether the row has this column, or, by a path such as `data.question`, that inside one."""
    return path in fields or value_of(fields, path) is not None


def value_of(fields: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of what stands inside one, None where it is not there."""
    if path in fields or "." not in path:
        return fields.get(path)
    value: Any = fields
    for name in path.split("."):
        value = nested(value)
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with each `{name}` replaced by that column's text; `{{` and `}}` are braces.

    "Message: {message}" -> "Message: We need water". What stands in braces is a column's name and nothing else.
    Raises `BadRow` for a column that is not there, null, blank or nested.
    """
    for name in holes(template):
        if not held(fields, name):
            raise BadRow(
                f"the template {template!r} names {name!r}, which the row has not"
                f"{did_you_mean(name, fields)} (columns: {', '.join(sorted(map(str, fields)))})"
            )

    def words(match: re.Match) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        value = value_of(fields, name)
        return (
            str(value) if isinstance(value, bool) else text_of({name: value}, (name,), number=True)
        )

    return HOLE.sub(words, template)
