"""ShareGPT (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md): turns that say from whom they are.

{"conversations": [{"from": "human", "value": "Is the well safe?"}, {"from": "gpt", "value": "Boil it first."}]}
"""

from lorakit.data.schemas import column, messages
from lorakit.data.schemas.messages import conversation

GIVES = "messages"
RICHNESS = 50
REQUIRED = (("conversations", "conversation", "contents"),)  # the last: Gemini's
OPTIONAL = messages.OPTIONAL


def convert(fields: dict) -> dict:
    return conversation(fields, column(fields, REQUIRED[0]))
