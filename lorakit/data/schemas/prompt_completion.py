"""A prompt and its completion: text, or turns (https://huggingface.co/docs/trl/dataset_formats#prompt-completion).

{"prompt": "Which latrine ratio is the minimum?", "completion": "One for twenty people."}
"""

from lorakit.common.errors import BadRow
from lorakit.data import markup
from lorakit.data.schemas import column, marks, prompts, text_of
from lorakit.data.schemas.messages import conversation

GIVES = "messages"
RICHNESS = 30
REQUIRED = (
    ("prompt", "question", "query", "problem", "input"),
    ("completion", "response", "solution", "output", "answer"),
)
OPTIONAL = prompts.INPUT + prompts.BESIDE + marks.NAMES


def convert(fields: dict) -> dict:
    prompt, completion = (column(fields, names) for names in REQUIRED)
    if isinstance(fields[prompt], list) and isinstance(fields[completion], list):
        both = f"{prompt} + {completion}"
        found = conversation({**fields, both: fields[prompt] + fields[completion]}, both)
        turns = found["messages"]
        if "assistant" in [turn["role"] for turn in turns[: len(turns) - len(fields[completion])]]:
            raise BadRow(
                f"{prompt!r} holds an answer, and every answer is trained: leave the row out, or give all "
                "its turns as 'messages'"
            )
        return found
    question = text_of(fields, REQUIRED[0])
    if markup.may_be(question):  # a template inside the model's template
        whole = markup.turns_of(question + text_of(fields, REQUIRED[1], number=True))
        if whole is not None and whole[-1]["role"] == "assistant":
            return conversation({**fields, "turns": whole}, "turns")
    extra = text_of(fields, prompts.INPUT, empty=True) if prompt != "input" else ""
    if extra.strip():
        question = f"{question}\n\n{extra}"
    turns = prompts.conversation_of(fields, question, REQUIRED[1], before="context")["messages"]
    return {"messages": marks.marked(fields, turns)}
