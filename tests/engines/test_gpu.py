"""What needs a CUDA card, offline, in one command: `make gpu`. It ends in one table.

With LORAKIT_GPU_TESTS=cpu what a CPU can do of it runs there: a check of the tests themselves.
"""

import contextlib
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.attention import agree, both
from helpers.engines import SMALL, batches, history, learnable, noise, settings, shaken
from helpers.gpu_table import noted
from helpers.models import save_base
from helpers.paths import ROOT
from helpers.runs import tiny_run
from safetensors import safe_open
from transformers import Gemma3TextConfig, LlamaConfig

import lorakit
from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import attention, fp8, norm, products
from lorakit.machine import hardware
from lorakit.models import base_model
from lorakit.planning import choose, memory
from lorakit.tasks.batches import collate
from lorakit.training.loop import State

DRY = os.environ.get("LORAKIT_GPU_TESTS") == "cpu"
CARD = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not (CARD or DRY), reason="no CUDA card")]
card_only = pytest.mark.skipif(not CARD, reason="only on a card")


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    torch.backends.cuda.matmul.allow_tf32 = False


def curve(base, rows, **changes):
    engine = load(settings(base, **changes))
    lines = history(engine, batches(rows, engine, changes.get("micro_batch_size", 8)))
    engine.close()
    return np.array([line["loss"] for line in lines]), lines


def test_one_curve(base):
    """8×1, 2×4, packed and padded in fp32; the rest is measured against it."""
    rows = learnable(64)
    plain, _ = curve(base, rows)
    assert plain[-1] < plain[0] - 1
    for what, changes in {
        "2×4": {"micro_batch_size": 2},
        "padded": {"packing": False},
        "recomputed": {"gradient_checkpointing": True},
        "offloaded": {"offload": True},
    }.items():
        other, _ = curve(base, rows, **changes)
        off = np.abs(other - plain).max()
        noted(f"step losses, {what} against 8×1 packed", f"{off:.1e}")
        assert off < 1e-4


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=card_only)])
def test_half_precision_follows_the_curve(base, precision):
    """fp16 with its scaler, as on a T4: some first steps are skipped, none silently."""
    rows = learnable(64)
    plain, _ = curve(base, rows)
    half, lines = curve(base, rows, precision=precision)
    skipped = sum(line["skipped"] for line in lines)
    noted(
        f"{precision}: last loss against fp32, skipped steps",
        f"{half[-1]:.4f} {plain[-1]:.4f}, {skipped}",
    )
    assert np.isfinite(half).all() and skipped < 10 and (precision == "fp16" or skipped == 0)
    assert half[-1] < plain[0] - 0.8 * (plain[0] - plain[-1])


@card_only
def test_an_old_card_gets_fp16(base, monkeypatch):
    old = hardware.Card("Tesla T4", 15 * 10**9, (7, 5))
    run, choices = choose.resolve(
        lorakit.Run(data="-", model=base),
        hardware.Facts(cards=(old,), packages={"torch": torch.__version__}),
    )
    assert run.precision == "fp16" and choices["precision"][1] == "Tesla T4 has no bf16 hardware"


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=card_only)])
def test_four_bits(base, precision):
    """NF4: the loss falls, packed and padded agree, an evaluation in between changes nothing."""
    rows = learnable(64)
    first, _ = curve(base, rows, quantization="nf4", precision=precision)
    second, _ = curve(base, rows, quantization="nf4", precision=precision, packing=False)
    noted(
        f"NF4 {precision}: loss, packed against padded",
        f"{first[0]:.3f} → {first[-1]:.3f}, {np.abs(first - second).max():.1e}",
    )
    assert first[-1] < first[0] - 1
    assert np.abs(first - second).max() < {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}[precision]
    engine = shaken(load(settings(base, quantization="nf4", precision="fp32")))
    batch = collate(noise(30, 9, 17), range(3))
    gradients = []
    for _ in range(2):
        engine.backward(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in engine.trained.values()]))
        engine.optimization.drop_gradients()
        engine.predict(batch)
        engine.generate([[1, 2, 3]], 3, [])
    assert torch.allclose(*gradients, atol=1e-6, rtol=1e-4)


def fp8_units():
    return not CARD or torch.cuda.get_device_capability() >= (8, 9)


@pytest.mark.skipif(not fp8_units(), reason="no FP8 units")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp8(base, precision):
    """Lossy: the curve stays near, packed and padded agree, cosines are 0.98; products are the plain form's."""
    rows = learnable(64)
    plain, _ = curve(base, rows)
    first, _ = curve(base, rows, quantization="fp8", precision=precision)
    second, _ = curve(base, rows, quantization="fp8", precision=precision, packing=False)
    found = []
    for changes in ({}, {"quantization": "fp8", "precision": precision}):
        engine = shaken(load(settings(base, **changes)))
        engine.backward(collate(noise(30, 9, 17), range(3)))
        found.append([engine.trained[n].grad.flatten() for n in sorted(engine.trained)])
    cosine = min(
        float(torch.nn.functional.cosine_similarity(a, b, 0)) for a, b in zip(*found, strict=True)
    )
    noted(
        f"FP8 {precision}: losses against fp32, packed against padded, cosine",
        f"{np.abs(first / plain - 1).max():.1%} {np.abs(first / second - 1).max():.1%} {cosine:.3f}",
    )
    assert (
        np.abs(first / plain - 1).max() < 0.05
        and np.abs(first / second - 1).max() < 0.05
        and cosine > 0.98
    )
    where = torch.device("cuda" if CARD else "cpu")
    x, w = (fp8.quantized(torch.randn(n, 256, device=where)) for n in (300, 512))
    off = (fp8.product(x, w, torch.float32) - fp8.plain(x, w, torch.float32)).abs().max()
    assert fp8.tried(where) == "" and off < 0.01 * fp8.plain(x, w, torch.float32).abs().max()


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
)
def test_resume(base, optimizer):
    """From a saved state the losses are those of the run that was not cut."""
    rows = learnable(64)
    one = load(settings(base, optimizer=optimizer, dropout=0.1))
    whole = history(one, batches(rows, one, updates=8))
    two = load(settings(base, optimizer=optimizer, dropout=0.1))
    history(two, batches(rows, two, updates=4))
    state = two.state()
    three = load(settings(base, optimizer=optimizer, dropout=0.1))
    three.restore(state)
    rest = history(three, batches(rows, three, updates=8), state=State(update=4))
    off = max(abs(a["loss"] - b["loss"]) for a, b in zip(whole[4:], rest, strict=True))
    noted(f"resumed, {optimizer}: step losses against uncut", f"{off:.1e}")
    assert off < 1e-5


def test_generation_is_that_of_the_cpu(base):
    engine = shaken(load(settings(base)))
    prompts = [row["ids"] for row in noise(12, 5, 9)]
    together = engine.generate(prompts, 16, [257])
    alone = [engine.generate([p], 16, [257])[0] for p in prompts]
    weights = engine.weights()
    engine.model.float().to("cpu")
    engine.passes.device = torch.device("cpu")
    assert together == alone == engine.generate(prompts, 16, [257])
    assert all(np.isfinite(w).all() for w in weights.values())


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    config = Gemma3TextConfig(
        **SMALL | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    )
    return save_base(tmp_path_factory.mktemp("gemma"), config)


@card_only
def test_out_of_memory_for_real(base, tmp_path):
    """A limit on the allocator: the update is the same, in smaller pieces."""
    rows = [{"ids": r["ids"] * 8, "targets": r["targets"] * 8} for r in noise(*[60] * 16)]
    for row in rows:
        row["targets"][0] = False
    engine = load(settings(base, micro_batch_tokens=16384, micro_batch_size=16))
    batch = collate(rows, range(16))
    expected, _ = engine.backward(batch)
    engine.optimization.drop_gradients()
    engine.pending.clear()
    engine._free()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 60e6) / total)
    try:
        loss, _ = engine.backward(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    noted("out of memory: steps taken", ", ".join(engine.steps) or "none")
    assert engine.steps and loss == pytest.approx(expected, rel=1e-4)


def test_a_run_in_the_background(rows_file, base, tmp_path):
    """From a process that has touched the card; afterwards its memory is free."""
    if CARD:
        torch.ones(1, device="cuda")
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
    run = tiny_run(base, rows_file, tmp_path, quantization="nf4", precision="auto", processes=1)
    start = time.perf_counter()
    job = lorakit.launch(run).watch()
    assert job.result()["loss"]["after"] < job.result()["loss"]["before"]
    record = job.folder.record
    noted(
        "a launched run",
        f"{time.perf_counter() - start:.0f} s, {record['choices']['precision'][0]}, "
        f"{record['peak_memory']['measured'] / 1e6:.0f} MB",
    )
    if CARD:
        assert record["proof"]["reloaded"] and torch.cuda.mem_get_info()[0] >= before - 50e6


@card_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one card")
def test_two_cards(rows_file, base, tmp_path):
    losses = []
    for count in (1, 2):
        run = tiny_run(base, rows_file, tmp_path, name=f"on{count}", processes=count, dropout=0.0)
        folder = lorakit.launch(run).watch().folder
        losses.append([u["loss"] for u in folder.history()[0]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert all(p["target_tokens"] for p in folder.record["processes"])


@card_only
@pytest.mark.skipif(not hardware.facts().packages.get("unsloth"), reason="unsloth is not installed")
@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "gemma-3-4b"])
def test_unsloth_sees(name, tmp_path):
    """Pictures through its FastVisionModel, in a child: the loss falls, what sees stays frozen."""
    from lorakit.notebook.rehearse import stand_in

    run = lorakit.Run(
        model=stand_in(name, tmp_path)[0],
        data=str(ROOT / "data/leaves"),
        task="chat_images",
        engine="unsloth",
        output_dir=str(tmp_path),
        max_rows=64,
        max_updates=12,
        learning_rate=2e-3,
        target_modules="all-linear",
        max_new_tokens=8,
    )
    folder = lorakit.launch(run).watch().folder
    assert (
        folder.record["choices"]["loading"][0] == "FastVisionModel"
        and folder.record["status"] == "done"
    )
    assert folder.scores["loss"]["after"] < folder.scores["loss"]["before"]
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "np") as saved:
        assert not [n for n in list(saved.keys()) if "vision" in n or "visual" in n]
    noted(
        f"unsloth, {name}: loss",
        f"{folder.scores['loss']['before']:.2f} → {folder.scores['loss']['after']:.2f}",
    )


@card_only
@pytest.mark.parametrize(
    ("what", "changes"),
    {
        "bf16": {},
        "nf4": {"quantization": "nf4"},
        "recomputed": {"gradient_checkpointing": True},
        "full": {"method": "full", "precision": "bf16"},
    }.items(),
)
def test_memory_is_what_was_predicted(tmp_path_factory, what, changes):
    """A Llama of 0.4 B parameters, 4,096 tokens at a time."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    folder = tmp_path_factory.getbasetemp() / "large"
    if not folder.exists():
        save_base(folder, config)
    run = (
        settings(
            str(folder),
            precision="bf16",
            max_length=1024,
            **{"micro_batch_tokens": 4096, **changes},
        )
        if ("precision" not in changes)
        else settings(str(folder), max_length=1024, micro_batch_tokens=4096, **changes)
    )
    rows = noise(*[1024] * 4)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = load(run)
    for _ in range(2):
        _, count = engine.backward(collate(rows, range(4)))
        engine.update(1e-4, count)
    measured, predicted = engine.memory(), memory.memory(run)["total"]
    engine.close()
    noted(
        f"memory, {what}: predicted against measured",
        f"{predicted / 1e9:.2f} GB, {measured / 1e9:.2f} GB, {predicted / measured - 1:+.0%}",
    )
    assert abs(predicted / measured - 1) < 0.15


# Kernels


@card_only
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_beside_the_plain_form(dtype, window, sinks):
    """Documents longer than any block and than the window, grouped heads, the head sizes of the families."""
    card = torch.cuda.get_device_capability()
    if dtype == torch.bfloat16 and card < (8, 0):
        pytest.skip("planning refuses bf16 on this card")
    worst = 0.0
    for heads, width in (((8, 1), 64), ((4, 4), 96), ((8, 2), 128), ((4, 1), 256)):
        query = torch.empty(1, 1, 1, width, dtype=dtype, device="cuda")
        way = attention.form(query, query)
        pairs = both(
            way, dtype, [700, 1, 513, 64], heads, width, window=window, sinks=sinks, where="cuda"
        )
        worst = max(worst, agree(pairs, dtype))
    words = f"{way.__name__}, {dtype}, window {window}" + (", sinks" if sinks else "")
    noted(f"attention: {words}: error of output and gradients", f"{worst:.1e}")


@card_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_by_torchs_kernels(dtype):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("planning refuses bf16 on this card")
    serves = norm.fused_serves(torch.device("cuda", 0), dtype)
    noted(f"norms by torch's own kernels, {dtype}", "yes" if serves else "no: plain passes")


@card_only
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_four_bits_are_multiplied_as_they_are_stored(rows):
    """Few rows, as in generation: equal to dequantized weights, and faster."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    dtype = torch.float16
    layer = bitsandbytes.nn.Linear4bit(
        4096, 4096, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
    )
    layer = layer.to(dtype).cuda()
    x = torch.randn(rows, 4096, device="cuda", dtype=dtype)
    found, took = [], []
    for way in (contextlib.nullcontext, products.generating):
        with way(), torch.no_grad():
            found.append(products.linear(x, layer).float())
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                products.linear(x, layer)
            torch.cuda.synchronize()
            took.append((time.perf_counter() - start) / 50 * 1e6)
    off = float((found[0] - found[1]).norm() / found[0].norm())
    noted(
        f"4-bit product of {rows} rows: dequantized, as stored, error",
        f"{took[0]:.0f} µs, {took[1]:.0f} µs, {off:.1e}",
    )
    assert off < 1e-2


@card_only
def test_products_in_fp16_with_everything_else_in_fp32(gemma, monkeypatch):
    """As Gemma 3 runs on a T4: the curve of fp32, nothing skipped."""
    plain_spec = base_model.spec
    monkeypatch.setattr(base_model, "spec", lambda name: replace(plain_spec(name), fp16=False))
    rows = learnable(64)
    plain, _ = curve(gemma, rows)
    half, lines = curve(gemma, rows, precision="fp16")
    off = np.abs(half / plain - 1).max()
    noted("fp16 products, fp32 residual stream: losses against fp32", f"{off:.1e}")
    assert off < 2e-2 and not any(line["skipped"] for line in lines)


@card_only
def test_rates_of_products():
    names = ["fp32", "fp16"] + ["bf16"] * (torch.cuda.get_device_capability() >= (8, 0))
    rates = {name: memory.matmul_rate(name) for name in names}
    noted("matrix products", ", ".join(f"{n} {r / 1e12:.0f} TFLOP/s" for n, r in rates.items()))
    assert rates["fp16"] > rates["fp32"]


@card_only
def test_answers_are_measured_apart(base):
    engine = load(settings(base))
    before = engine.memory()
    engine.generate([row["ids"] for row in noise(*[200] * 16)], 32, [])
    assert engine.memory() == before and engine.generation_memory() > before
