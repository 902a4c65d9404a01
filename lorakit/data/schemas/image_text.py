"""A picture and what is to be said about it; what was asked, where something was.

{"image": "leaves/rust_12.jpg", "caption": "A maize leaf with brown pustules on both sides."}
"""

from lorakit.data.schemas import image_label, medium_of, text_of

GIVES = "image"
RICHNESS = 70
WORDS = ("caption", "description", "completion", "response", "solution", "output", "answer", "text")
REQUIRED = (image_label.PICTURE, WORDS)
OPTIONAL = image_label.QUESTION
fits = image_label.fits


def convert(fields: dict) -> dict:
    return {
        "media": [medium_of(fields, REQUIRED[0])],
        "question": image_label.question_of(fields),
        "text": text_of(fields, WORDS),
    }
