"""Families that see, hear or classify, which are never packed, on the CUDA branch: gradients beside the plain form."""

from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from helpers.cuda_reference import claimed
from helpers.engines import settings, shaken
from helpers.pictures import SETTINGS

import lorakit
from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import lora
from lorakit.models import base_model
from lorakit.models import spec as models
from lorakit.tasks.batches import collate
from lorakit.tasks.objectives import labels

TASKS = {
    "blip-base": "caption",
    "distilbert": "classify_text",
    "gemma-3-4b": "chat_images",
    "gemma-3n-e2b": "chat_images",
    "qwen2.5-vl-3b": "chat_images",
    "smolvlm-256m": "chat_images",
    "swin-tiny": "classify_image",
    "vit-base": "classify_image",
    "whisper-small": "transcribe",
}


@cache
def example(base, task, leaves):
    """(three rows as one micro-batch, their classes)"""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 60, n).tolist() for n in (9, 4, 6)]
    if task == "classify_text":
        rows = [{"ids": some, "label": len(some) % 2} for some in ids]
        return collate(rows, range(3), documents=labels.documents), ("yes", "no")
    if task == "transcribe":
        config = base_model.config(base)
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
        sound = {"input_features": rng.standard_normal(shape).astype(np.float32)}
        rows = [{"ids": some, "targets": [False] + [True] * (len(some) - 1)} for some in ids]
        return collate(rows, range(3), inputs=lambda row, _: sound), ()
    run = lorakit.Run(model=base, data=leaves, task=task, augment=False, **SETTINGS)
    prepared = lorakit.prepare(run)
    train = prepared.rows["train"]
    some = [train[i] for i in range(3)]
    batch = collate(some, range(3), inputs=train.inputs, documents=train.documents)
    return batch, tuple(prepared.meta["classes"])


@cache
def gradient(base, task, leaves, card, precision):
    """Of all adapters; without a card by PEFT's own modules and whole logits."""
    batch, classes = example(base, task, leaves)
    with claimed(card):
        engine = load(settings(base, task=task, precision=precision), classes=classes)
        shaken(engine, by=0.03).model.eval().train = lambda mode=True: engine.model  # no dropout
        if not card:
            engine.losses.head = None
        with nullcontext() if card else lora.as_peft():
            engine.backward(batch)
        found = [engine.trained[n].grad for n in sorted(engine.trained)]
        parts = [g.flatten() for g in found if g is not None]
        return torch.cat(parts) / engine.optimization.scaler.get_scale()


def apart(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("card", "precision", "most"),
    [((7, 5), "fp32", 1e-5), ((7, 5), "fp16", 2e-2), ((9, 0), "bf16", 2e-2)],
    ids=["T4 fp32", "T4 fp16", "H200 bf16"],
)
@pytest.mark.parametrize("name", TASKS)
def test_gradients_are_those_of_peft_in_fp32(made, leaves, name, card, precision, most):
    given = (made(name), TASKS[name], leaves)
    if name == "gemma-3n-e2b" and precision == "bf16":
        pytest.skip(
            "its thresholds fall otherwise in bf16, by our kernels and by PEFT's: see below"
        )
    assert apart(gradient(*given, card, precision), gradient(*given, None, "fp32")) <= most


@pytest.mark.slow
def test_sparse_layers_in_bf16_are_as_far_off_as_in_plain_bf16(made, leaves):
    """A twentieth of a layer's activations passes a threshold of their spread: 0.135 against 0.138."""
    given = (made("gemma-3n-e2b"), "chat_images", leaves)
    exact = gradient(*given, None, "fp32")
    rounding = apart(gradient(*given, None, "bf16"), exact)
    assert apart(gradient(*given, (9, 0), "bf16"), exact) <= 1.1 * rounding


def test_no_family_is_left_out():
    """Beside those that are packed: `test_cuda_families`."""
    kinds = {models.known()[name].config["model_type"] for name in TASKS}
    seeing = {
        spec.config["model_type"]
        for spec in models.known().values()
        if "vision_config" in spec.config or "image_size" in spec.config
    }
    assert seeing <= kinds and {"distilbert", "whisper"} <= kinds
