"""Conversations about pictures, through the model's own chat template: Gemma 3 and 3n, Qwen-VL, SmolVLM, …

As in `chat`, the assistant's tokens are trained and nothing else: neither the words around a picture nor the tokens
that stand for it. A picture and a class, or a caption, become a question (`question` of the run, or the row's own) and
its answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import BadRow
from lorakit.data import media
from lorakit.data.example import Example
from lorakit.tasks import chat
from lorakit.tasks.template import render

GIVES = "image"
OBJECTIVE = "next_token"
MEDIUM = "image"
METRICS = chat.METRICS
COLUMNS = chat.COLUMNS | {"media": ["binary"]}
SETTINGS = ("question", "reasoning")
MOST = 1024  # pixels of a picture's longer side at most, unless the model looks closer
guard, stop_ids = chat.guard, chat.stop_ids


def suits(processor: Any) -> bool:
    return bool(getattr(processor, "chat_template", None))


def encode(
    example: Example,
    processor: Any,
    max_length: int,
    question: str = "",
    reasoning: str = "auto",
) -> list[dict]:
    """Rows of one conversation; each holds the pictures of the turns before its answer."""
    pictures = [kept(media.picture(medium), processor) for medium in example.fields["media"]]

    given: list[tuple[list[int], list[bytes]]] = []  # each prompt and the pictures in it

    def seen(turns: list[dict], prompt: list[int]) -> list[int]:
        some = pictures[: shown(turns)]
        given.append((with_pictures(turns, some, processor), some))
        return given[-1][0]

    rows = chat.encode_turns(
        example,
        turns_of(example.fields, question),
        processor.tokenizer,
        max_length,
        seen,
        reasoning,
    )
    token = getattr(processor.tokenizer, "image_token_id", None) or processor.image_token_id
    for row in rows:
        prompt, row["media"] = max(
            (g for g in given if row["ids"][: len(g[0])] == g[0]), key=lambda g: len(g[0])
        )
        if row["ids"].count(token) != prompt.count(token):
            raise BadRow(f"max_length={max_length} cuts through a picture; raise it")
    return rows


def turns_of(fields: dict, question: str) -> list[dict]:
    """A conversation whose turns come in parts, as the templates of such models want them."""
    if "turns" not in fields:
        asked = {"role": "user", "content": fields["question"] or question, "images": 1}
        fields = {"turns": [asked, {"role": "assistant", "content": fields["text"]}]}
    return [
        {
            **{k: v for k, v in turn.items() if k not in ("content", "images")},
            "content": [{"type": "image"}] * turn.get("images", 0)
            + [{"type": "text", "text": turn["content"]}],
        }
        for turn in fields["turns"]
    ]


def shown(turns: list[dict]) -> int:
    """How many pictures these turns show."""
    return sum(part["type"] == "image" for turn in turns for part in turn["content"])


def kept(image: Any, processor: Any) -> bytes:
    size = dict(getattr(processor.image_processor, "size", None) or {})
    return media.packed(image, max(MOST, size.get("height") or 0, size.get("width") or 0))


def with_pictures(turns: list[dict], pictures: list[bytes], processor: Any) -> list[int]:
    """The prompt's tokens; the model's own processor puts as many as a picture takes in its place."""
    words = render(processor.tokenizer, turns, True)
    if not pictures:
        return processor.tokenizer(words, add_special_tokens=False)["input_ids"]
    images = [media.unpacked(picture) for picture in pictures]
    return np.asarray(
        processor(text=[words], images=[images], add_special_tokens=False)["input_ids"][0]
    ).tolist()


def inputs(row: dict, processor: Any, random: np.random.Generator | None) -> dict[str, np.ndarray]:
    """pixel_values and what else the model's own image processor gives"""
    images = [media.unpacked(picture) for picture in row["media"]]
    # Fast image processors of transformers 5.0 (Kaggle) give torch's tensors alone.
    found = processor.image_processor(images, return_tensors="pt")
    return {name: np.asarray(value) for name, value in found.items()}


def ask(question: str, processor: Any) -> dict:
    """`question` names a picture first, then asks: "leaf.jpg What is this?"."""
    path, _, words = question.partition(" ")
    if not Path(path).is_file() and Path(question).is_file():
        path, words = question, ""
    picture = kept(media.picture(media.examined(path, "image", [])), processor)
    turns = turns_of({"question": words, "text": ""}, "What does this picture show?")[:1]
    return {"ids": with_pictures(turns, [picture], processor), "media": [picture]}


def opening(tokenizer: Any) -> int | None:
    return chat.opening(tokenizer, parts=True)
