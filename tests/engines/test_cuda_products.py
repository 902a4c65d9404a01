"""Products of cards by reference kernels on a CPU: four bits as they are stored, FP8, recomputation, dropout, two ranks."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.cuda_reference import claimed
from helpers.engines import SMALL, noise, settings, shaken
from helpers.launches import Launches
from helpers.models import save_base
from helpers.paths import ROOT
from transformers import LlamaConfig

from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import fp8, products
from lorakit.tasks.batches import collate

T4, L4, H200 = (7, 5), (8, 9), (9, 0)
WAYS = pytest.mark.parametrize(
    ("card", "precision"), [(T4, "fp16"), (H200, "bf16")], ids=["T4", "H200"]
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("llama"), LlamaConfig(**SMALL))


def gradient(engine, rows):
    for parameter in engine.trained.values():
        parameter.grad = None
    loss, _ = engine.backward(collate(rows, range(len(rows))))
    parts = [engine.trained[n].grad.flatten() for n in sorted(engine.trained)]
    return float(loss), torch.cat(parts)


def apart(one, other):
    return float((one - other).norm() / other.norm())


# Answers with a base in four bits


@WAYS
@pytest.mark.parametrize("bias", [False, True])
def test_four_bits_as_stored_are_the_plain_product(card, precision, bias):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        320, 96, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
    )
    layer = layer.to(dtype).to("cpu")
    assert layer.weight.quant_state.nested
    x = torch.randn(5, 320).to(dtype)
    with claimed(card) as calls, torch.no_grad():
        plain = products.linear(x, layer)
        assert not calls
        with products.generating():
            found = products.linear(x, layer)
        assert [name for name, *_ in calls] == ["gemm_4bit"]
        many = torch.randn(products.FEW + 1, 320).to(dtype)
        with products.generating():
            products.linear(many, layer)
        assert len(calls) == 1  # many rows are multiplied by dequantized weights
    assert apart(found.float(), plain.float()) < (2e-3 if precision == "fp16" else 1e-2)


@WAYS
def test_answers_dequantize_no_weight(monkeypatch, llama, card, precision):
    prompts = [row["ids"] for row in noise(9, 7)]
    with claimed(card) as calls:
        engine = shaken(load(settings(llama, precision=precision, quantization="nf4")))
        calls.clear()
        with Launches() as seen:
            answers = engine.generate(prompts, 6, [])
        assert not [name for name in seen.launches if "dequantize_4bit" in name]
        layers = 7 * SMALL["num_hidden_layers"]
        assert [name for name, *_ in calls].count("gemm_4bit") == 6 * layers
        monkeypatch.setattr(products, "generating", contextlib.nullcontext)
        with Launches() as seen:
            assert engine.generate(prompts, 6, []) == answers
        assert seen.launches["bitsandbytes::dequantize_4bit"] >= 6 * layers


# FP8


@pytest.mark.parametrize("card", [L4, H200], ids=["L4", "H200"])
def test_fp8_units_multiply_what_the_plain_form_multiplies(monkeypatch, llama, card):
    """In bf16, which their sums leave in."""
    rows = noise(40, 30)
    found = []
    for served in (True, False):
        with claimed(card) as calls:
            if not served:
                monkeypatch.setattr(fp8, "fast", fp8.plain)
            engine = shaken(load(settings(llama, precision="bf16", quantization="fp8")), by=0.03)
            calls.clear()
            found.append(gradient(engine, rows))
            assert ("scaled_mm" in {name for name, *_ in calls}) is served
    (loss, mine), (plain_loss, plain) = found
    assert loss == pytest.approx(plain_loss, rel=2e-3) and apart(mine, plain) < 2e-2


# Recomputation, dropout, packs


@WAYS
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputing_changes_no_gradient(llama, card, precision, dropout):
    """Of packs too; the adapters' dropout falls the same way again."""
    rows, found = noise(40, 30, 3), []
    for again in (False, 1, True):
        with claimed(card):
            changes = {"precision": precision, "dropout": dropout, "quantization": "nf4"}
            engine = shaken(load(settings(llama, gradient_checkpointing=again, **changes)))
            assert engine.packing
            found.append(gradient(engine, rows))
    (loss, kept), *others = found
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, rel=1e-6) and apart(other, kept) < 1e-5


# Two processes

RANK = """
import json, sys
import torch
from helpers.cuda_reference import claimed
from helpers.engines import RATE, learnable, settings
import numpy as np
from lorakit.engines.torch import load
from lorakit.machine import distributed
from lorakit.tasks.batches import Batches
from lorakit.training.loop import State, train

base, card, precision = sys.argv[1], tuple(map(int, sys.argv[2].split("."))), sys.argv[3]
world = distributed.join()
with claimed(card):
    engine, rows, lines = load(settings(base, precision=precision)), learnable(32), []
    pieces = Batches(
        rows, np.array([len(r["ids"]) for r in rows]), global_batch_size=8, micro_batch_size=8,
        micro_batch_tokens=4096, packing=engine.packing, seed=0, epochs=1, max_updates=4,
        rank=world.rank, processes=world.size,
    )
    train(engine, pieces, State(), lambda update: RATE, lambda state, line: lines.append(line))
if world.first:
    print("LOSSES", json.dumps([line["loss"] for line in lines]))
"""


@pytest.mark.slow
@WAYS
def test_two_ranks_have_the_curve_of_one(tmp_path, llama, card, precision):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    given = [str(script), llama, ".".join(map(str, card)), precision]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    found = []
    for start in (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], []):
        out = subprocess.run(
            [sys.executable, *start, *given], env=environment, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr[-2000:]
        line = next(x for x in out.stdout.splitlines() if x.startswith("LOSSES"))
        found.append(json.loads(line.removeprefix("LOSSES")))
    two, one = found
    assert len(two) == 4 and two[-1] < two[0]
    assert two == pytest.approx(one, rel=2e-3 if precision == "fp16" else 2e-2)
