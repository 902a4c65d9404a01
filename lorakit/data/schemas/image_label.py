"""A picture and its class.

{"image": "leaves/rust_12.jpg", "label": "Common_Rust"}
"""

from lorakit.data.schemas import medium_of, text_label, text_of

GIVES = "image"
RICHNESS = 72
LABELS = True
PICTURE = ("image", "picture", "photo", "img", "image_path", "image_file", "file_name")
REQUIRED = (PICTURE, text_label.REQUIRED[1])
QUESTION = ("prompt", "question")
OPTIONAL = QUESTION


def convert(fields: dict) -> dict:
    label = text_label.class_of(fields)
    return {
        "media": [medium_of(fields, PICTURE)],
        "question": text_of(fields, QUESTION, empty=True),
        "text": label,
        "label": label,
    }
