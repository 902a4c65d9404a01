"""torch and Unsloth engines on one random Llama of 1 B: the same rows, seeds and adapter, each in a process of its own.

    python bench/unsloth_same_curve.py

Offline, on a CUDA card, where lorakit and unsloth are importable. Prints JSON: the curves' greatest difference, tokens
per second, peak memory; then a whole run of the Unsloth engine, to status done with its proof. `--small` is the same
on a tiny model, so that the script can be tried on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common import registry
from lorakit.machine.hardware import child_environment
from lorakit.models import reading
from lorakit.run import Run
from lorakit.training.finetune import finetune
from lorakit.training.loop import State, train
from lorakit.training.session import batches_of

ROOT = Path(__file__).parents[1]
ENGINES = ("torch", "unsloth")
LARGE = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
}
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
}
WARM = 5  # updates that are not counted into the speed: kernels are compiled in them


class Rows(list):
    """Rows in memory, as `batches_of` wants them."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["ids"]) for row in self])


def rows(count: int = 512, phrases: int = 16) -> Rows:
    """64 to 1024 tokens each, one of a few phrases of 24 tokens over and over: what comes next can be learnt."""
    rng = np.random.default_rng(0)
    said = rng.integers(10, 4000, (phrases, 24))
    out = Rows()
    for i in range(count):
        length = int(rng.integers(64, 1025))
        ids = np.resize(said[i % phrases], length)
        out.append({"ids": ids, "targets": np.arange(length) >= 8})
    return out


def make(folder: Path, small: bool) -> None:
    """The base: random weights, 32,000 tokens, with the tokenizer of lorakit's own model."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer, _ = reading.tokenizer("tiny")
    ids = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")
    }
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=32000, tie_word_embeddings=False, **ids, **(SMALL if small else LARGE)
            ),
            dtype=torch.bfloat16,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def settings(folder: Path, engine: str, **more: Any) -> Run:
    return Run(
        **{
            "name": engine,
            "model": str(folder / "base"),
            "data": str(ROOT / "data/relief.jsonl"),
            "engine": engine,
            "output_dir": str(folder / "outputs"),
            "quantization": "none",
            "max_length": 1024,
            "rank": 16,
            "alpha": 32,
            "learning_rate": 5e-4,
            "global_batch_size": 16,
            "micro_batch_size": 16,
            "micro_batch_tokens": 4096,
            "packing": True,
            "gradient_checkpointing": False,
            "offload": False,
            "processes": 1,
            **more,
        }
    )


def curve(folder: Path, engine: str, precision: str, updates: int) -> dict[str, Any]:
    """Step losses, speed and memory of one engine; all start from the first one's adapter."""
    run, start = (
        settings(folder, engine, precision=precision, max_updates=updates),
        folder / "start.npz",
    )
    trained = registry.load("engines", engine).load(run)
    mine = trained.weights()
    if not start.exists():
        np.savez(start, **mine)
    with np.load(start) as kept:
        other = {name: kept[name] for name in kept.files}
    trained.set_weights(other)
    data, lines = rows(), []
    batches = batches_of(data, run, trained.packing)
    train(
        trained,
        batches,
        State(),
        lambda update: run.learning_rate,
        lambda state, line: lines.append(line),
    )
    tokens = [sum(len(b.ids) for b in batches[update]) for update in range(updates)]
    warm = min(WARM, updates - 1)
    found = {
        "losses": [line["loss"] for line in lines],
        "tokens_per_second": sum(tokens[warm:]) / sum(line["seconds"] for line in lines[warm:]),
        "first_update_seconds": lines[0]["seconds"],
        "peak_memory_gb": trained.memory() / 1e9,
        "own_start_differs_by": max(float(abs(mine[n] - other[n]).max()) for n in mine),
        "notes": trained.notes,
    }
    trained.close()
    return found


def proof(folder: Path, engine: str) -> dict[str, Any]:
    """A whole run: scores before and after, adapter saved, repeated by a fresh process."""
    record = finetune(
        settings(
            folder,
            engine,
            name=f"{engine}-whole",
            precision="auto",
            max_updates=8,
            max_rows=64,
            max_new_tokens=16,
        )
    ).record
    return {
        name: record.get(name)
        for name in ("status", "error", "proof", "choices", "tokens_per_second")
    }


def child(*arguments: str) -> dict[str, Any]:
    """The last line that this script prints with these arguments, in a process that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        env=child_environment() | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        return {"failed": (done.stdout + done.stderr)[-3000:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The greatest difference of step losses, in nats."""
    if any("losses" not in one for one in found.values()):
        return found
    one, other = (np.array(found[engine]["losses"]) for engine in ENGINES)
    speed = [found[engine]["tokens_per_second"] for engine in ENGINES]
    return {
        "greatest_difference": float(abs(one - other).max()),
        "at_update": int(abs(one - other).argmax()) + 1,
        "relative": float((abs(one - other) / one).max()),
        "first_loss": one[0],
        "last_loss": one[-1],
        "unsloth_times_torch": speed[1] / speed[0],
        **found,
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--small", action="store_true")
    options.add_argument("--updates", type=int, default=30)
    options.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    options.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        what, folder, *more = given.child
        calls = {
            "make": lambda: make(Path(folder) / "base", more[0] == "small"),
            "curve": lambda: curve(Path(folder), more[0], more[1], int(more[2])),
            "proof": lambda: proof(Path(folder), more[0]),
        }
        print(json.dumps(calls[what]() or {}))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = {"base": child("--child", "make", folder, "small" if given.small else "large")}
        for precision in given.precisions:
            Path(folder, "start.npz").unlink(missing_ok=True)
            out[precision] = compared(
                {
                    engine: child("--child", "curve", folder, engine, precision, str(given.updates))
                    for engine in ENGINES
                }
            )
            print(json.dumps({precision: out[precision]}), file=sys.stderr)
        out["whole run"] = child("--child", "proof", folder, ENGINES[1])
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "unsloth_same_curve.json").write_text(json.dumps(out, indent=1))
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
