"""A prompt and its completion, also under the names question/answer.

{"prompt": "Which latrine ratio is the minimum?", "completion": "One for twenty people."}
"""

from lorakit.schemas import text_of, turns

GIVES = "messages"
REQUIRED = (("prompt", "question"), ("completion", "answer", "response"))


def convert(fields: dict) -> dict:
    return turns(text_of(fields, REQUIRED[0]), text_of(fields, REQUIRED[1]))
