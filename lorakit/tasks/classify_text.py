"""Texts and their classes: a new head on top of the base learns to tell them apart.

The head is trained in full beside the adapter and saved with it. Its seed makes it; before training it guesses.
"""

from __future__ import annotations

from typing import Any

from lorakit.data.example import Example
from lorakit.tasks import guard_classes, none

GIVES = "messages"
OBJECTIVE = "labels"
MEDIUM = ""
METRICS = ("loss", "accuracy", "f1", "roc_auc")
COLUMNS = {"ids": ["int32"], "cut": "int32", "prompt": "string", "reference": "string"}
guard, stop_ids = guard_classes, none


def encode(example: Example, tokenizer: Any, max_length: int) -> list[dict]:
    """One row: what the user's turns say, with the tokenizer's own special tokens around it; its class is the row's
    label, else the answer."""
    turns = example.fields["messages"]
    label = example.fields.get("label", turns[-1]["content"].strip())
    words = "\n".join(turn["content"] for turn in turns if turn["role"] == "user")
    # Control tokens that the words hold are text.
    ids = tokenizer(words, verbose=False, split_special_tokens=True)["input_ids"]
    kept = tokenizer(words, truncation=True, max_length=max_length, split_special_tokens=True)[
        "input_ids"
    ]
    return [
        {
            "ids": kept,
            "cut": len(ids) - len(kept),
            "prompt": words,
            "reference": label,
            "file": example.file,
            "row": example.row,
        }
    ]


def ask(question: str, tokenizer: Any) -> dict:
    return {"ids": tokenizer(question)["input_ids"]}


def opening(tokenizer: Any) -> None:
    return None
