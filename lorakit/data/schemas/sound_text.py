"""A recording and the words spoken in it.

{"audio": "recordings/7_jackson_32.wav", "text": "seven"}
"""

from collections.abc import Sequence

from lorakit.data.example import Example
from lorakit.data.schemas import SOUNDS, column, ends, medium_of, text_of

GIVES = "sound"
RICHNESS = 70
FILES = ("file_name", "filename", "path", "file")  # of sounds, by the endings of their values
SOUND = ("audio", "sound", "speech", "recording", "wav", "audio_path", "audio_file", *FILES)
WORDS = ("text", "sentence", "transcription", "transcript", "normalized_text", "words")
REQUIRED = (SOUND, WORDS)
OPTIONAL = ()
NEUTRAL = ("label",)  # the folder that a recording is in


def fits(rows: Sequence[Example]) -> bool:
    """Whether a column that names files names sounds."""
    names = [column(row.fields, SOUND) for row in rows if set(SOUND) & row.fields.keys()]
    return not names or names[0] not in FILES or ends(rows[0].fields.get(names[0]), SOUNDS)


def convert(fields: dict) -> dict:
    return {"media": [medium_of(fields, SOUND)], "text": text_of(fields, WORDS, number=True)}
