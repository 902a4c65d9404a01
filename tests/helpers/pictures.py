"""Pictures to classify and a run on them."""

import io

import numpy as np
import pytest
from PIL import Image

import lorakit
from lorakit.notebook.rehearse import stand_in

CLASSES = {"rust": (200, 90, 40), "spot": (90, 140, 60), "blight": (150, 150, 120)}


def blank() -> bytes:
    """A white PNG of one pixel."""
    Image.new("L", (1, 1), 255).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


BLANK = blank()
SETTINGS = {
    "precision": "fp32",
    "quantization": "none",
    "max_length": 256,
    "max_new_tokens": 6,
    "max_updates": 6,
    "learning_rate": 2e-3,
    "validate_every": 3,
    "checkpoint_every": 3,
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """name -> a folder with a model of that architecture, small, with its processor."""
    home, known = tmp_path_factory.mktemp("made"), {}

    def make(name):
        if name not in known:
            known[name] = stand_in(name, home)[0]
        return known[name]

    return make


@pytest.fixture(scope="session")
def leaves(tmp_path_factory):
    """Pictures of three colours, 16 of each, in a folder per class."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, colour in CLASSES.items():
        (folder / label).mkdir()
        for i in range(16):
            rough = rng.normal(colour, 50, (5, 5, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(rough).resize((48, 40), Image.Resampling.NEAREST).save(
                folder / label / f"{i}.png"
            )
    return str(folder)


def trained(name, model, data, tmp_path, **settings):
    return lorakit.finetune(
        lorakit.Run(
            name=name, model=model, data=data, output_dir=str(tmp_path), **{**SETTINGS, **settings}
        )
    )
