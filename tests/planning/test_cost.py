"""What a run is said to take before it starts, against what it takes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.models import save_base
from helpers.paths import ROOT
from helpers.runs import tiny_run
from transformers import AutoConfig, LlamaConfig

import lorakit
from lorakit.engines.torch.kernels import simulate
from lorakit.models import spec as models
from lorakit.planning import memory
from lorakit.tasks.batches import Batches

sys.path.insert(0, str(ROOT / "bench"))
import predicted


def test_tensors_without_content_are_counted_while_they_live():
    layer = torch.nn.Linear(100, 50)
    simulate.empty(layer)
    with simulate.Live(layer) as live:
        x = torch.empty(10, 100)  # 4,000 bytes
        y = layer(x)  # 2,000
        z = y.view(5, 100)
        assert live.now == 6000
        del x, y
        assert live.now == 6000  # z is a view of y, whose gradient needs x
        del z
        assert (live.now, live.most) == (0, 6000)


def test_what_tensors_without_content_say():
    """Results in place, dtypes and strides are as they would be; numbers are not made up."""
    layer = torch.nn.Linear(100, 50)
    simulate.empty(layer)
    with simulate.Live(layer):
        x = torch.ones(4, 100)
        assert x.mul_(2) is x and layer(x).t().stride() == (1, 50)
        assert (x.half() @ layer.weight.half().t()).dtype == torch.float16
        assert torch.tensor([3, 4]).sum().item() == 7  # of numbers that are there
        with pytest.raises(RuntimeError, match="meta"):
            x.sum().item()
        with pytest.raises(NotImplementedError, match="changes a shape"):
            x.t_()


def test_activations_in_the_hosts_memory_are_not_counted():
    layer = torch.nn.Linear(100, 50)
    simulate.empty(layer)
    with simulate.Live(layer) as live:
        with simulate.kept_elsewhere():
            out = layer(torch.empty(10, 100))
        assert live.now == 2000  # `out` alone
        out.sum().backward()
        assert layer.weight.grad.shape == (50, 100)


def test_memory_counts_what_a_plain_pass_counts():
    """One linear layer under LoRA, full fine-tuning of it, and NF4: by hand."""
    of = memory.Shape(
        linear=10**6, other=10**5, adapter=10**4, layers=1, hidden=1, wide=1, vocabulary=1, widest=0
    )
    run = lorakit.Run(data="-", model="tiny", precision="bf16", quantization="none", max_length=64)
    parts = lambda **changes: memory.memory(run.with_(**changes), of)
    assert parts()["weights"] == 2 * 1_100_000 and parts()["trained"] == 16 * 10**4
    assert parts(quantization="nf4")["weights"] == 10**6 * 4.127 // 8 + 2 * 10**5
    assert parts(optimizer="adamw_8bit")["trained"] == int(10.03 * 10**4)
    full = parts(method="full")
    assert (full["weights"], full["trained"]) == (4 * 1_100_000, 12 * 1_100_000)
    assert full["total"] == sum(v for k, v in full.items() if k != "total")


QUICK = (
    "distilbert",
    "gemma-3n-e2b",
    "phi-3-mini",
    "whisper-small",
)  # one of each kind; the rest are slow
COUNTED = sorted(n for n in models.known() if n not in ("tiny", "gpt-oss-20b"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in COUNTED]
)
def test_every_known_model_is_counted(name, tmp_path):
    """Its small copy: activations grow with the tokens, and recomputing them takes less."""
    spec = models.known()[name]
    config = AutoConfig.for_model(**models.shrunk(spec.config, spec.small))
    config.save_pretrained(tmp_path)
    run = lorakit.Run(
        data="-",
        model=str(tmp_path),
        engine="torch",
        precision="fp32",
        quantization="none",
        max_length=128,
        gradient_checkpointing=False,
        target_modules=spec.target_modules
        if isinstance(spec.target_modules, str)
        else list(spec.target_modules),
    )
    of = memory.shape(run)
    assert of.adapter > 0 and of.linear > 0
    few, many = (
        memory.working(run.with_(micro_batch_tokens=128 * n, micro_batch_size=n), of)
        for n in (1, 8)
    )
    again = memory.working(
        run.with_(micro_batch_tokens=1024, micro_batch_size=8, gradient_checkpointing=True), of
    )
    assert few < many and again < many


def test_a_shape_is_what_peft_makes(base):
    """Adapter weights as PEFT counts them, wherever the targets are."""
    from lorakit.engines.torch import load

    for targets in ("all-linear", ["q_proj", "v_proj"], r".*layers\.1\.mlp\.\w+_proj"):
        run = lorakit.Run(
            data="-",
            model=base,
            engine="torch",
            precision="fp32",
            quantization="none",
            rank=4,
            max_length=64,
            micro_batch_tokens=64,
            micro_batch_size=1,
            target_modules=targets,
            gradient_checkpointing=False,
            packing=True,
        )
        engine = load(run)
        assert memory.shape(run).adapter == sum(p.numel() for p in engine.trained.values())
        engine.close()


def test_time_after_a_few_updates():
    assert memory.total_seconds(
        [(100, 5.0), (100, 1.0), (200, 2.0), (50, 0.5), (100, 9.0)], 1000
    ) == pytest.approx(14.0)
    batches = Batches(
        [None] * 5,
        np.array([10, 20, 30, 40, 50]),
        global_batch_size=2,
        micro_batch_size=2,
        micro_batch_tokens=100,
        packing=True,
        seed=0,
        epochs=2,
    )
    assert batches.total_tokens == 300 == sum(batches.tokens(u) for u in range(len(batches)))


@pytest.mark.slow
def test_a_record_holds_both(rows_file, base, tmp_path):
    folder = lorakit.finetune(tiny_run(base, rows_file, tmp_path, max_updates=12))
    record = folder.record
    assert record["peak_memory"]["predicted"] > 0 and record["peak_memory"]["measured"] > 0
    assert record["seconds_predicted"] == pytest.approx(
        record["seconds"], rel=0.5
    )  # a shared machine


@pytest.mark.slow
@pytest.mark.parametrize(("config", "changes"), predicted.TABLE)
def test_memory_is_within_15_percent(config, changes):
    out = subprocess.run(
        [sys.executable, predicted.__file__, json.dumps(config), json.dumps(changes)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(out.splitlines()[-1])
    assert found["predicted"] >= 1e9 and abs(found["off"]) < 0.15


@pytest.mark.slow
def test_the_smallest_of_them(tmp_path):
    """The same with 0.2 GB."""
    config = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4000,
    }
    assert save_base(tmp_path, LlamaConfig(**config))
    out = subprocess.run(
        [
            sys.executable,
            predicted.__file__,
            json.dumps(config),
            json.dumps({"precision": "fp32", "micro_batch_tokens": 1024}),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert abs(json.loads(out.splitlines()[-1])["off"]) < 0.25
