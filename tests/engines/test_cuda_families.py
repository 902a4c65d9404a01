"""Every family that packs, on the CUDA branch: packed and padded are one loss and one gradient."""

from functools import cache

import pytest
import torch
from helpers.cuda_reference import claimed
from helpers.engines import noise, settings, shaken

from lorakit.engines.torch import load
from lorakit.models import spec as models
from lorakit.notebook.rehearse import stand_in
from lorakit.tasks.batches import collate

FAMILIES = (
    "gemma-3-270m",
    "gpt-oss-20b",
    "llama-3.2-1b",
    "mistral-7b",
    "opt-125m",
    "phi-3-mini",
    "qwen3-0.6b",
    "smollm2-135m",
)
LENGTHS = (70, 3, 66, 20)  # windows of the shrunken models are of 64 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def counting(*lengths):
    """Rows that count through five tokens: their gradients agree. Those of noise cancel, and rounding stays: in bf16
    5 % of OPT's, packed or padded."""
    rows = noise(*lengths)
    for number, row in enumerate(rows):
        row["ids"] = [10 + (number + place) % 5 for place in range(len(row["ids"]))]
    return rows


@cache
def made(name, folder):
    return stand_in(name, folder)


@cache
def computed(base, card, precision, packing, made_rows):
    """(loss, gradients of the adapters without the loss's scale, whether it was packed, the operators called)"""
    with claimed(card) as calls:
        engine = shaken(load(settings(base, precision=precision, packing=packing)), by=0.03)
        engine.model.eval().train = lambda mode=True: engine.model  # OPT has dropout of its own
        loss, _ = engine.backward(collate(made_rows(*LENGTHS), range(len(LENGTHS))))
        gradients = [engine.trained[n].grad.flatten() for n in sorted(engine.trained)]
        gradient = torch.cat(gradients) / engine.optimization.scaler.get_scale()
        return float(loss), gradient, engine.packing, {name for name, *_ in calls}


def apart(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("card", "precision", "operator", "most"),
    [
        ((7, 5), "fp32", "efficient", 1e-5),
        ((7, 5), "fp16", "efficient", 2e-2),
        ((9, 0), "bf16", "flash", 2e-2),
    ],
    ids=["T4 fp32", "T4 fp16", "H200 bf16"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_is_padded(folder, name, card, precision, operator, most):
    """And what fp32 computes without our kernels for cards."""
    base, _ = made(name, folder)
    rows = noise if precision == "fp32" else counting
    loss, one, packed, operators = computed(base, card, precision, True, rows)
    plain, other, padded, _ = computed(base, card, precision, False, rows)
    assert packed and not padded and operators == {operator, f"{operator} backward"}
    assert loss == pytest.approx(plain, rel=most)
    assert apart(one, other) <= most
    _, exact, *_ = computed(base, None, "fp32", False, rows)
    assert apart(one, exact) <= most


def test_no_family_is_left_out():
    words = {
        name
        for name, spec in models.known().items()
        if spec.config and "vision_config" not in str(spec.config)
    }
    kinds = {models.known()[name].config["model_type"] for name in FAMILIES}
    left = {models.known()[name].config["model_type"] for name in words} - kinds
    assert left <= {"distilbert", "whisper", "vit", "swin", "llama", "gpt2"}
