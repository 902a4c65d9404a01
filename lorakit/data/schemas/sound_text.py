"""A recording and the words spoken in it.

{"audio": "recordings/7_jackson_32.wav", "text": "seven"}
"""

from lorakit.data.schemas import medium_of, text_of

GIVES = "sound"
RICHNESS = 70
SOUND = ("audio", "sound", "speech", "recording", "wav", "audio_path", "audio_file")
WORDS = ("text", "sentence", "transcription", "transcript", "normalized_text", "words")
REQUIRED = (SOUND, WORDS)
OPTIONAL = ()
NEUTRAL = ("label",)  # the folder that a recording is in


def convert(fields: dict) -> dict:
    return {"media": [medium_of(fields, SOUND)], "text": text_of(fields, WORDS, number=True)}
