"""Pictures and what is to be said about them, for models that caption without being asked (BLIP, arXiv 2201.12086).

Trained are the caption's tokens and the end token. A model with a chat template is asked: see `chat_images`.
"""

from __future__ import annotations

from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data import media
from lorakit.data.example import Example
from lorakit.tasks import chat, chat_images, classify_image

GIVES = "image"
OBJECTIVE = "next_token"
MEDIUM = "image"
METRICS = ("loss", "perplexity", "token_accuracy", "bleu", "chrf", "rouge")
COLUMNS = chat.COLUMNS | {"media": ["binary"]}
guard, inputs = chat.guard, chat_images.inputs


def suits(processor: Any) -> bool:
    return not chat_images.suits(processor) and getattr(processor, "tokenizer", None) is not None


def encode(example: Example, processor: Any, max_length: int) -> list[dict]:
    """One row: the start token, the caption, the end token."""
    if chat_images.suits(processor):
        return chat_images.encode(
            example, processor, max_length, "Describe this picture in one sentence."
        )
    tokenizer, fields = processor.tokenizer, example.fields
    if "text" not in fields:
        raise BadRow("is a conversation; this model captions a picture without being asked")
    row = seen(media.picture(fields["media"][0]), processor)
    ids = [
        *row["ids"],
        *tokenizer(fields["text"], add_special_tokens=False)["input_ids"],
        end_of(tokenizer),
    ]
    targets = [False] + [True] * (len(ids) - 1)
    return [
        chat.cut({**row, "ids": ids, "targets": targets}, max_length)
        | {
            "answer_start": 1,
            "prompt": fields["media"][0]["name"],
            "reference": fields["text"],
            "file": example.file,
            "row": example.row,
        }
    ]


def seen(image: Any, processor: Any) -> dict:
    """A row for a picture, without its caption."""
    tokenizer, most = processor.tokenizer, 2 * max(classify_image.side(processor))
    known = getattr(processor, "start_id", None), tokenizer.bos_token_id, tokenizer.cls_token_id
    start = next(i for i in known if i is not None)
    return {"ids": [start], "media": [media.packed(image, most)]}


def end_of(tokenizer: Any) -> int:
    return tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id


def stop_ids(rows: list[dict], tokenizer: Any) -> list[int]:
    return chat.stop_ids(rows, tokenizer) or [end_of(tokenizer)]


def ask(question: str, processor: Any) -> dict:
    """`question` is the path of a picture."""
    if chat_images.suits(processor):
        return chat_images.ask(question, processor)
    return seen(media.picture(media.examined(question, "image", [])), processor)


def opening(tokenizer: Any) -> None:
    return None
