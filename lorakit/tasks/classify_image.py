"""Pictures and their classes: a new head on top of the base learns to tell them apart.

In training a picture is cropped, mirrored and recoloured at random, by the run's seed: a few hundred go further so
(arXiv 2106.10270 §4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lorakit.common.errors import BadRow
from lorakit.data import media
from lorakit.data.example import Example
from lorakit.tasks import guard_classes, none

GIVES = "image"
OBJECTIVE = "labels"
MEDIUM = "image"
METRICS = ("loss", "accuracy", "f1", "roc_auc")
COLUMNS = {
    "ids": ["int32"],
    "cut": "int32",
    "length": "int32",
    "prompt": "string",
    "reference": "string",
    "media": ["binary"],
    "augment": "bool",
}
SETTINGS = ("augment",)
guard, stop_ids = guard_classes, none
LEAST, TILT, SHADE = (
    0.6,
    4 / 3,
    0.25,
)  # of the area that a crop keeps; of its sides; of brightness, contrast, colour


def encode(example: Example, processor: Any, max_length: int, augment: bool = True) -> list[dict]:
    """One row: the picture, upright and no larger than it is of use."""
    if "label" not in example.fields:
        raise BadRow("has no class: name the columns, e.g. columns: {image: photo, label: kind}")
    row = shown(media.picture(example.fields["media"][0]), processor)
    return [
        {
            **row,
            "augment": augment,
            "prompt": example.fields["media"][0]["name"],
            "reference": example.fields["label"],
            "file": example.file,
            "row": example.row,
        }
    ]


def shown(image: Any, processor: Any) -> dict:
    """A row for a picture, without its class."""
    high, wide = side(processor)
    return {
        "ids": [],
        "cut": 0,
        "length": max(1, high * wide // 256),  # patches of 16 × 16, as most models have
        "media": [media.packed(image, 2 * max(high, wide))],
    }


def side(processor: Any) -> tuple[int, int]:
    """Height and width, in pixels, that a picture is brought to."""
    processor = getattr(processor, "image_processor", processor)
    size = dict(getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {})
    if "height" in size:
        return size["height"], size["width"]
    edge = next(v for v in (size.get("shortest_edge"), size.get("longest_edge"), 224) if v)
    return edge, edge


def inputs(row: dict, processor: Any, random: np.random.Generator | None) -> dict[str, np.ndarray]:
    """pixel_values (1, 3, H, W)"""
    image = media.unpacked(row["media"][0])
    if random is not None and row["augment"]:
        image = augmented(image, random)
    # Fast image processors of transformers 5.0 (Kaggle) give torch's tensors alone.
    return {
        "pixel_values": np.asarray(processor(images=image, return_tensors="pt")["pixel_values"])
    }


def augmented(image: Any, random: np.random.Generator) -> Any:
    """A part of the picture of at least `LEAST` of its area, perhaps mirrored, lighter or darker, paler or brighter."""
    from PIL import Image, ImageEnhance

    wide, high = image.size
    area, tilt = random.uniform(LEAST, 1), np.exp(random.uniform(-np.log(TILT), np.log(TILT)))
    w, h = (
        min(whole, round(whole * np.sqrt(part)))
        for whole, part in ((wide, area * tilt), (high, area / tilt))
    )
    left, top = random.integers(0, wide - w + 1), random.integers(0, high - h + 1)
    image = image.resize(image.size, Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(random.uniform(1 - SHADE, 1 + SHADE))
    return image


def ask(question: str, processor: Any) -> dict:
    """`question` is the path of a picture."""
    return shown(media.picture(media.examined(question, "image", [])), processor)


def opening(tokenizer: Any) -> None:
    return None
