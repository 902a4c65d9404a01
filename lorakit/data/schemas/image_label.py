"""A picture and its class.

{"image": "leaves/rust_12.jpg", "label": "Common_Rust"}
"""

from collections.abc import Sequence

from lorakit.data.example import Example
from lorakit.data.schemas import SOUNDS, ends, medium_of, text_label, text_of

GIVES = "image"
RICHNESS = 72
LABELS = True
PICTURE = ("image", "images", "picture", "photo", "img", "image_path", "image_file", "file_name")
REQUIRED = (PICTURE, text_label.REQUIRED[1])
QUESTION = ("prompt", "question", "query", "instruction", "problem", "input")
OPTIONAL = QUESTION


def fits(rows: Sequence[Example]) -> bool:
    """Whether the files that `file_name` names are no sounds."""
    return not ends(rows[0].fields.get("file_name"), SOUNDS)


def convert(fields: dict) -> dict:
    label = text_label.class_of(fields)
    return {
        "media": [medium_of(fields, PICTURE)],
        "question": question_of(fields),
        "text": label,
        "label": label,
    }


def question_of(fields: dict) -> str:
    """What is asked about the picture, an instruction and its input on lines of their own."""
    given = (text_of(fields, (name,), empty=True) for name in QUESTION)
    return "\n\n".join(filter(None, (words.replace("<image>", "").strip() for words in given)))
