"""Two answers to one prompt, the preferred one and the other (https://huggingface.co/docs/trl/dataset_formats#preference).

{"prompt": "Is the well safe?", "chosen": "Boil the water first.", "rejected": "Yes, drink it."}

The prompt may also stand in both answers, as turns or in HH-RLHF's text ("\\n\\nHuman: … \\n\\nAssistant: …"), in
`conversations` (ShareGPT), or in `input` (OpenAI: `preferred_output`, `non_preferred_output`).
"""

from __future__ import annotations

from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data import markup
from lorakit.data.schemas import SYSTEM, column, text_of
from lorakit.data.schemas.messages import ROLES, conversation

GIVES = "pair"
RICHNESS = 80
REQUIRED = (
    ("chosen", "preferred_output", "chosen_response", "preferred", "winner"),
    ("rejected", "non_preferred_output", "rejected_response", "dispreferred", "loser"),
)
PROMPT = ("prompt", "question", "instruction", "input", "conversations", "messages", "query")
# How good each answer is.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
OPTIONAL = (*PROMPT, *SYSTEM, *(name for pair in SCORES for name in pair))


def convert(fields: dict) -> dict:
    """`messages`: the prompt and the chosen answer; `pair`: {"rejected": the other answer}."""
    names = [column(fields, some) for some in REQUIRED]
    prompt = _prompt(fields, names)
    sides = [_conversation(fields, name, prompt) for name in names]
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        raise BadRow(
            f"{names[0]!r} and {names[1]!r} answer different prompts; a pair has one prompt and two answers"
        )
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise BadRow(f"{names[0]!r} and {names[1]!r} are equal: there is nothing to prefer")
    for better, worse in SCORES:
        good, bad = fields.get(better), fields.get(worse)
        if all(isinstance(s, (int, float)) for s in (good, bad)) and good < bad:  # type: ignore[operator]
            raise BadRow(
                f"{better!r} is {good:g} and {worse!r} {bad:g}: the other answer is better"
            )
    return {"messages": chosen, "pair": {"rejected": rejected[-1]}}


def _prompt(fields: dict, names: list[str]) -> list[dict]:
    """The turns before the answers, where a column of its own holds them."""
    name = next((n for n in PROMPT if n in fields and fields[n] not in (None, "", [])), None)
    if name is None or (name == "messages" and isinstance(fields[names[0]], list)):
        return []  # in both answers; UltraFeedback's `messages` repeats the chosen one
    value = fields[name]
    if isinstance(value, dict):
        value = value.get("messages")
    if isinstance(value, list):
        return value
    words = text_of(fields, (name,))
    return markup.speakers_of(words) or [{"role": "user", "content": words}]


def _conversation(fields: dict, name: str, prompt: list[dict]) -> list[dict[str, Any]]:
    """All turns of one side, its answer last."""
    value = fields[name]
    if not isinstance(value, (dict, list)):
        words = text_of(fields, (name,))
        turns = markup.speakers_of(words) or [{"role": "assistant", "content": words}]
    elif isinstance(value, dict):
        turns = [value]
    else:
        turns = value
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        raise BadRow(f"{name!r} is {type(value).__name__}, expected an answer: text or turns")
    whole = turns if any(map(_asks, turns)) else [*prompt, *turns]
    if not any(map(_asks, whole)):
        raise BadRow(
            f"no prompt: name the column that holds it, e.g. columns: {{prompt: question}}, or give {name!r} "
            "as turns that begin with the user's"
        )
    told = {key: fields[key] for key in SYSTEM if key in fields}
    try:
        return conversation({**told, name: whole}, name)["messages"]
    except BadRow as error:
        raise BadRow(f"{name!r}: {error}") from None


def _asks(turn: Any) -> bool:
    """Whether the turn is the user's."""
    said = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return isinstance(said, str) and ROLES.get(said.strip().lower()) == "user"
