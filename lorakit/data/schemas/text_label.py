"""A text and its class: the text is the question, the class's name is the answer.

{"text": "We have had no water for three days.", "label": "need"}
"""

import re

from lorakit.common.errors import BadRow
from lorakit.data.schemas import column, text_of, turns

GIVES = "messages"
RICHNESS = 20
LABELS = True
REQUIRED = (
    ("text", "sentence", "message", "review", "content"),
    ("label_text", "label", "labels", "category", "class", "sentiment", "intent"),
)
OPTIONAL = ()
WHOLE = re.compile(r"-?\d+\.0+")


def convert(fields: dict) -> dict:
    label = class_of(fields)
    return {**turns(text_of(fields, REQUIRED[0]), label), "label": label}


def class_of(fields: dict) -> str:
    """A name without the white space around it, a whole number (1 and 1.0 are the same), True or False."""
    name = column(fields, REQUIRED[1])
    value = fields[name]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        value = value.strip().partition(".")[0]  # "1" and "1.0" are one class
    if isinstance(value, float) and value == value:
        if not value.is_integer():
            raise BadRow(f"{name!r} is {value}, expected a class: text or a whole number")
        value = int(value)
    return text_of({name: value}, (name,), number=True).strip()
