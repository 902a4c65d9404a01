"""Alpaca (https://github.com/tatsu-lab/stanford_alpaca) and Dolly: instruction, optional input, output.

{"instruction": "Turn this into one radio message.", "input": "Bridge gone at mile 4 …", "output": "Bridge out, …"}
"""

from lorakit.data.schemas import marks, prompts, text_of

GIVES = "messages"
RICHNESS = 40
REQUIRED = (("instruction",), ("output", "response", "completion", "solution", "answer"))
OPTIONAL = prompts.INPUT + prompts.BESIDE + marks.NAMES


def convert(fields: dict) -> dict:
    """The input, when there is one, follows the instruction after an empty line."""
    instruction = text_of(fields, REQUIRED[0])
    extra = text_of(fields, prompts.INPUT, empty=True)
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    found = prompts.conversation_of(fields, question, REQUIRED[1])["messages"]
    return {"messages": marks.marked(fields, found)}
