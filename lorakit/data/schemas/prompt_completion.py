"""A prompt and its completion: text, or turns (https://huggingface.co/docs/trl/dataset_formats#prompt-completion).

{"prompt": "Which latrine ratio is the minimum?", "completion": "One for twenty people."}
"""

from lorakit.common.errors import BadRow
from lorakit.data.schemas import SYSTEM, column, text_of, turns
from lorakit.data.schemas.messages import conversation

GIVES = "messages"
REQUIRED = (
    ("prompt", "question", "query", "problem", "input"),
    ("completion", "answer", "response", "solution", "output"),
)
OPTIONAL = SYSTEM


def convert(fields: dict) -> dict:
    prompt, completion = (column(fields, names) for names in REQUIRED)
    if isinstance(fields[prompt], list) and isinstance(fields[completion], list):
        both = f"{prompt} + {completion}"
        found = conversation({**fields, both: fields[prompt] + fields[completion]}, both)[
            "messages"
        ]
        if "assistant" in [turn["role"] for turn in found[: len(found) - len(fields[completion])]]:
            raise BadRow(
                f"{prompt!r} holds an answer, and every answer is trained: leave the row out, or give all "
                "its turns as 'messages'"
            )
        return {"messages": found}
    return turns(
        text_of(fields, REQUIRED[0]),
        text_of(fields, REQUIRED[1], number=True),
        text_of(fields, SYSTEM, empty=True),
    )
