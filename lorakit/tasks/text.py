"""Plain text: every token but the first is trained, the end of a text included.

Long texts become several rows; each begins with the token that ends the one before, so that each is trained once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example

GIVES = "text"
OBJECTIVE = "next_token"
MEDIUM = ""
METRICS = ("loss", "perplexity", "token_accuracy")
COLUMNS = {"ids": ["int32"], "targets": ["bool"], "cut": "int32"}


def encode(example: Example, tokenizer: Any, max_length: int) -> list[dict]:
    """Pieces of at most `max_length` tokens; the end-of-sequence token closes the last."""
    text, bos, eos = example.fields["text"], tokenizer.bos_token_id, tokenizer.eos_token
    if eos and text.rstrip().endswith(eos):
        text = text.rstrip()  # the end is written out already
    ids = tokenizer(text, verbose=False)["input_ids"]
    while bos is not None and ids[:2] == [bos, bos]:  # the beginning too
        ids = ids[1:]
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids = [*ids, tokenizer.eos_token_id]
    if len(ids) < 2:
        raise BadRow("the text has no token to train")
    pieces = [ids[i : i + max_length] for i in range(0, len(ids) - 1, max_length - 1)]
    return [
        {
            "ids": piece,
            "targets": [False] + [True] * (len(piece) - 1),
            "cut": 0,
            "file": example.file,
            "row": example.row,
        }
        for piece in pieces
    ]


def ask(question: str, tokenizer: Any) -> dict:
    """The beginning of a text, to be continued."""
    return {"ids": tokenizer(question)["input_ids"]}


def guard(rows: Iterable[dict], tokenizer: Any) -> None:
    if not any(any(row["targets"]) for row in rows):
        raise LorakitError("no token is trained: every text is empty or one token long")


def stop_ids(rows: Iterable[dict], tokenizer: Any) -> list[int]:
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []


def opening(tokenizer: Any) -> None:
    return None
