"""Alpaca (https://github.com/tatsu-lab/stanford_alpaca): instruction, optional input, output.

{"instruction": "Turn this into one radio message.", "input": "Bridge gone at mile 4 …", "output": "Bridge out, …"}
"""

from lorakit.schemas import text_of, turns

GIVES = "messages"
REQUIRED = (("instruction",), ("output", "response"))


def convert(fields: dict) -> dict:
    """The input, when there is one, follows the instruction after an empty line."""
    instruction, extra = text_of(fields, ("instruction",)), ""
    if "input" in fields:
        extra = text_of(fields, ("input",), empty=True)
    return turns(f"{instruction}\n\n{extra}" if extra.strip() else instruction, text_of(fields, REQUIRED[1]))
