"""Answers that are each marked desirable or undesirable: the model learns to give the desirable ones (KTO).

Scored are the tokens of the last answer alone, its end-of-turn token included; earlier turns are the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.data.example import Example
from lorakit.tasks import chat, preferences

GIVES = "desirable"
OBJECTIVE = "kto"
MEDIUM = ""
METRICS = preferences.METRICS
COLUMNS = chat.COLUMNS | {
    "desirable": "bool",
    "other_ids": ["int32"],
    "other_targets": ["bool"],
    "length": "int32",
}
SETTINGS = chat.SETTINGS
ask, opening, stop_ids = chat.ask, chat.opening, chat.stop_ids


def encode(
    example: Example, tokenizer: Any, max_length: int, reasoning: str = "auto"
) -> list[dict]:
    """One row: the prompt with its answer."""
    turns = example.fields["messages"]
    row = preferences.side(example, tokenizer, turns[-1], max_length, reasoning)
    return [{**row, "desirable": example.fields["desirable"], **preferences.place(example)}]


def complete(rows: Any, max_length: int) -> Any:
    """`other_ids`, `other_targets`: each prompt with the answer of the row half the set away."""

    def beside(row: dict, place: int) -> dict:
        other = rows[(place + max(1, len(rows) // 2)) % len(rows)]
        prompt, answer = row["ids"][: row["answer_start"]], other["ids"][other["answer_start"] :]
        ids = (prompt + answer)[:max_length]
        return {
            "other_ids": ids,
            "other_targets": [i >= len(prompt) for i in range(len(ids))],
            "length": max(len(row["ids"]), len(ids)),
        }

    return rows.map(
        beside, with_indices=True, features=rows.features, load_from_cache_file=False,
        keep_in_memory=True,
    )  # fmt: skip


def guard(rows: Iterable[dict], tokenizer: Any) -> None:
    rows = list(rows)
    chat.guard(rows, tokenizer)
    if len({row["desirable"] for row in rows}) < 2:
        kind = "desirable" if rows[0]["desirable"] else "undesirable"
        raise LorakitError(
            f"every training answer is {kind}: there is nothing to compare",
            setting="task",
            value="unpaired",
            cure="add answers of the other kind, or train the good ones alone with task: chat",
        )
