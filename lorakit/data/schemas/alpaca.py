"""Alpaca (https://github.com/tatsu-lab/stanford_alpaca) and Dolly: instruction, optional input, output.

{"instruction": "Turn this into one radio message.", "input": "Bridge gone at mile 4 …", "output": "Bridge out, …"}
"""

from lorakit.data.schemas import SYSTEM, text_of, turns

GIVES = "messages"
REQUIRED = (("instruction",), ("output", "response", "completion", "answer", "solution"))
INPUT = ("input", "context")
OPTIONAL = INPUT + SYSTEM


def convert(fields: dict) -> dict:
    """The input, when there is one, follows the instruction after an empty line."""
    instruction, extra = text_of(fields, REQUIRED[0]), text_of(fields, INPUT, empty=True)
    return turns(
        f"{instruction}\n\n{extra}" if extra.strip() else instruction,
        text_of(fields, REQUIRED[1], number=True),
        text_of(fields, SYSTEM, empty=True),
    )
