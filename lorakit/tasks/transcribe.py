"""Recordings and the words spoken in them, for encoder-decoder models such as Whisper (arXiv 2212.04356).

Trained are the words and the end token; the tokens before them, which name language and task, are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lorakit.common.errors import BadRow
from lorakit.data import media
from lorakit.data.example import Example
from lorakit.tasks import chat

GIVES = "sound"
OBJECTIVE = "next_token"
MEDIUM = "sound"
METRICS = ("loss", "perplexity", "wer", "cer", "token_accuracy")
COLUMNS = {
    "ids": ["int32"],
    "targets": ["bool"],
    "cut": "int32",
    "length": "int32",
    "answer_start": "int32",
    "prompt": "string",
    "reference": "string",
    "media": ["binary"],
}
SETTINGS = ("language",)
START = "<|startoftranscript|>"
ENGLISH_ONLY = (
    51864  # tokens of the Whispers whose names end in .en; the others have at least one more
)
guard, stop_ids = chat.guard, chat.stop_ids


def encode(example: Example, processor: Any, max_length: int, language: str = "en") -> list[dict]:
    """One row. Raises `BadRow` for a recording longer than the model hears at once, or more words than it can say."""
    tokenizer, fields = processor.tokenizer, example.fields
    row = heard(media.sound(fields["media"][0]), processor, language)
    words = tokenizer(" " + " ".join(fields["text"].split()), add_special_tokens=False)["input_ids"]
    ids = [*row["ids"], *words, tokenizer.eos_token_id]
    if not words or len(ids) > min(max_length, tokenizer.model_max_length):
        raise BadRow(
            f"{len(words)} tokens of text; the model takes 1 to {min(max_length, tokenizer.model_max_length)}"
        )
    start = len(row["ids"])
    return [
        {
            **row,
            "ids": ids,
            "targets": [False] * start + [True] * (len(ids) - start),
            "cut": 0,
            "length": row["length"] + len(words),
            "answer_start": start,
            "prompt": fields["media"][0]["name"],
            "reference": fields["text"],
            "file": example.file,
            "row": example.row,
        }
    ]


def heard(samples: np.ndarray, processor: Any, language: str) -> dict:
    """A row for a recording, without its words."""
    ids, listener = opening_ids(processor.tokenizer, language), processor.feature_extractor
    if len(samples) > listener.n_samples:
        raise BadRow(
            f"lasts {len(samples) / media.RATE:.1f} s, and the model hears "
            f"{listener.n_samples / media.RATE:.0f} s at once: cut it into pieces"
        )
    return {
        "ids": ids,
        "length": listener.nb_max_frames // 2 + len(ids),
        "media": [media.packed_sound(samples)],
    }


def opening_ids(tokenizer: Any, language: str) -> list[int]:
    """The tokens before the words: <|startoftranscript|><|en|><|transcribe|><|notimestamps|>; of a model that knows
    English alone the first and the last."""
    known = tokenizer.get_added_vocab()
    if START not in known:
        raise BadRow(f"this model's tokenizer has no {START}: transcribe serves Whisper")
    names = [f"<|{language}|>", "<|transcribe|>"] if len(tokenizer) != ENGLISH_ONLY else []
    if names and names[0] not in known:
        raise BadRow(
            f"language={language!r}: the model knows no such language; use its code, e.g. sw"
        )
    return [known[name] for name in (START, *names, "<|notimestamps|>")]


def inputs(row: dict, processor: Any, random: np.random.Generator | None) -> dict[str, np.ndarray]:
    """input_features (1, bands, frames): the log-mel spectrogram, padded to what the model hears at once"""
    samples = media.unpacked_sound(row["media"][0])
    return dict(
        processor.feature_extractor(
            samples, sampling_rate=media.RATE, return_tensors="np", return_attention_mask=False
        )
    )


def ask(question: str, processor: Any, language: str = "en") -> dict:
    """`question` is the path of a recording."""
    return heard(media.sound(media.examined(question, "sound", [])), processor, language)


def opening(tokenizer: Any) -> None:
    return None
