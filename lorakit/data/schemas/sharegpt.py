"""ShareGPT (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md): turns that say from whom they are.

{"conversations": [{"from": "human", "value": "Is the well safe?"}, {"from": "gpt", "value": "Boil it first."}]}
"""

from lorakit.data.schemas import SYSTEM, column
from lorakit.data.schemas.messages import conversation

GIVES = "messages"
REQUIRED = (("conversations", "conversation"),)
OPTIONAL = SYSTEM


def convert(fields: dict) -> dict:
    return conversation(fields, column(fields, REQUIRED[0]))
