"""Pairs of answers: the model learns to give the preferred one (DPO, IPO, ORPO, SimPO: see `objectives/`).

Scored are the tokens of the last answer alone, its end-of-turn token included, in the chosen conversation and in the
rejected one; earlier turns are the prompt.
"""

from __future__ import annotations

from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data.example import Example
from lorakit.tasks import chat
from lorakit.tasks.template import answer_of, bare, words_of

GIVES = "pair"
OBJECTIVE = "dpo"
MEDIUM = ""
METRICS = ("loss", "preference_accuracy", "reward_margin", "chosen_loss")
COLUMNS = chat.COLUMNS | {
    "rejected_ids": ["int32"],
    "rejected_targets": ["bool"],
    "rejected": "string",
    "length": "int32",
}
SETTINGS = chat.SETTINGS
ask, guard, opening, stop_ids = chat.ask, chat.guard, chat.opening, chat.stop_ids


def encode(
    example: Example, tokenizer: Any, max_length: int, reasoning: str = "auto"
) -> list[dict]:
    """One row: the prompt with each of its two answers."""
    turns, other = example.fields["messages"], example.fields["pair"]["rejected"]
    chosen = side(example, tokenizer, turns[-1], max_length, reasoning)
    rejected = side(example, tokenizer, other, max_length, reasoning)
    if chosen["ids"] == rejected["ids"]:
        raise BadRow(
            f"the answers are equal in their first {max_length} tokens (max_length): nothing to prefer"
        )
    return [
        {
            **chosen,
            "cut": chosen["cut"] + rejected["cut"],
            "rejected": words_of(bare(tokenizer, other)),
            "rejected_ids": rejected["ids"],
            "rejected_targets": rejected["targets"],
            "length": len(chosen["ids"]) + len(rejected["ids"]),
            **place(example),
        }
    ]


def place(example: Example) -> dict:
    """Where the row came from."""
    return {"file": example.file, "row": example.row}


def side(example: Example, tokenizer: Any, answer: dict, max_length: int, reasoning: str) -> dict:
    """ids, targets, answer_start, cut and lost of the prompt with one answer; both as words."""
    turns = example.fields["messages"][:-1]
    found = answer_of(tokenizer, turns, answer, example.where, reasoning)
    prompt, said = found.prompt, found.ids
    if len(prompt) >= max_length:
        raise BadRow(
            f"no answer token within max_length={max_length} (the prompt has {len(prompt)})"
        )
    row = {"ids": prompt + said, "targets": [False] * len(prompt) + [True] * len(said)}
    lost = {"lost": sorted(found.lost)} if found.lost else {}
    return {
        **chat.cut(row, max_length),
        "answer_start": len(prompt),
        "prompt": words_of(turns[-1]),
        "reference": words_of(bare(tokenizer, answer)),
        **lost,
    }
