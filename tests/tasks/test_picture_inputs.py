"""Pictures reach a model through image processors that give torch's tensors alone, as those of transformers 5.0 do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit.data import media
from lorakit.tasks import chat_images, classify_image


def processor(images=None, return_tensors=None):
    if return_tensors != "pt":
        raise ValueError("Only returning PyTorch tensors is currently supported.")
    return {"pixel_values": torch.ones(1, 3, 2, 2)}


@pytest.mark.parametrize(
    ("task", "given"),
    [(classify_image, processor), (chat_images, SimpleNamespace(image_processor=processor))],
)
def test_a_processor_of_transformers_5_0_is_served(task, given):
    row = {"media": [media.packed(Image.new("RGB", (4, 4)), 4)], "augment": False}
    found = task.inputs(row, given, None)["pixel_values"]
    assert isinstance(found, np.ndarray) and found.tolist() == np.ones((1, 3, 2, 2)).tolist()
