"""Where the time of one update goes: on a CUDA card at a large shape, elsewhere at a small one.

    python bench/profile_update.py --shape 8b --tokens 16384 --lengths alpaca
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from lorakit import kernels, processes
from lorakit.batches import collate
from lorakit.engines.torch import TorchEngine, with_adapter
from lorakit.kernels import attention
from lorakit.models import Spec
from lorakit.run import Run

SHAPES = {
    "40m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "3.8b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 32, "vocab_size": 32064, "tie_word_embeddings": False},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}


class Tokenizer:
    pad_token_id = 0

    def __len__(self):
        return 300


def documents(tokens: int, lengths: str, longest: int, seed: int = 0) -> list[int]:
    """Lengths that sum to `tokens`: all `longest`, or as in Alpaca (lognormal, 150 at the median)."""
    rng, out = np.random.default_rng(seed), []
    while sum(out) < tokens:
        out.append(longest if lengths == "full" else int(np.clip(rng.lognormal(5.05, 0.65), 24, 1024)))
    out[-1] -= sum(out) - tokens
    return [n for n in out if n > 1]


def rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a product of random matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / float(np.median(times[3:]))


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--shape", default="40m")
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--lengths", default="alpaca")
    options.add_argument("--precision", default="bf16")
    options.add_argument("--updates", type=int, default=4)
    options.add_argument("--recompute", action="store_true")
    options.add_argument("--plain", action="store_true", help="PEFT's modules as they are")
    options.add_argument("--table", type=int, default=0, help="rows of the profiler's table")
    given = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(**SHAPES[given.shape], max_position_embeddings=4096, attn_implementation=attention.NAME)
    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}[given.precision]
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.set_default_dtype(torch.float32)
    run = Run(model="-", data="-", engine="torch", precision=given.precision, quantization="none", max_length=2048,
              packing=True, gradient_checkpointing=given.recompute, micro_batch_tokens=max(2048, given.tokens),
              micro_batch_size=8, rank=16)
    frozen = sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel() * (
        not SHAPES[given.shape]["tie_word_embeddings"])
    model = with_adapter(model, run, Spec(path="-"), None)
    if given.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if given.plain:
        kernels.install = lambda model: "none"
    kernels.install(model)
    engine = TorchEngine(model, Tokenizer(), run, torch.device(device), True, processes.ALONE)
    rng = np.random.default_rng(1)
    rows = [{"ids": (i := rng.integers(10, 5000, n)), "targets": np.arange(len(i)) >= 0.4 * n}
            for n in documents(given.tokens, given.lengths, 2048)]
    batch = collate(rows, range(len(rows)))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []

    def update():
        wait(device)
        start = time.perf_counter()
        engine.backward(batch)
        wait(device)
        middle = time.perf_counter()
        engine.update(1e-4, batch.count)
        wait(device)
        times.append((middle - start, time.perf_counter() - middle))

    for _ in range(given.updates):
        update()
    seconds = float(np.median([sum(t) for t in times[1:]]))
    peak = rate(device, dtype, 8192 if device == "cuda" else 1024)
    print(json.dumps({
        "shape": given.shape, "tokens": given.tokens, "documents": len(rows), "seconds": seconds,
        "optimizer_seconds": float(np.median([t[1] for t in times[1:]])), "tokens_per_second": given.tokens / seconds,
        "head": engine.head is not None, "notes": engine.notes, "memory_gb": engine.memory() / 1e9,
        "tflops_4n": 4 * frozen * given.tokens / seconds / 1e12, "matmul_tflops": peak / 1e12,
        "share": 4 * frozen * given.tokens / seconds / peak}), flush=True)
    if given.table:
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
        with profile(activities=kinds) as found:
            update()
        by = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
        print(found.key_averages().table(sort_by=by, row_limit=given.table, max_name_column_width=70))


if __name__ == "__main__":
    main()
