"""Plain text, every token of it trained.

{"text": "The river rose two metres in the night and took the lower camp."}
"""

from lorakit.data.schemas import text_of

GIVES = "text"
RICHNESS = 10
REQUIRED = (("text",),)
OPTIONAL = ()


def convert(fields: dict) -> dict:
    return {"text": text_of(fields, REQUIRED[0])}
