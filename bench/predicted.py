"""Predicted against measured memory, each run in a process of its own: on a CPU its resident memory above that of the
idle process, on a card what the allocator held at most.

    python bench/predicted.py            # the table
    python bench/predicted.py '{"hidden_size": 1024, …}' '{"quantization": "nf4"}'   # one line of it
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MIDDLE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 4, "vocab_size": 32000}
WIDE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 8, "vocab_size": 16000}
TABLE = [
    (MIDDLE, {"precision": "bf16", "micro_batch_tokens": 4096}),
    (MIDDLE, {"precision": "fp32", "micro_batch_tokens": 2048}),
    (MIDDLE, {"precision": "fp32", "micro_batch_tokens": 2048, "dropout": 0.1}),
    (MIDDLE, {"precision": "fp32", "method": "full", "micro_batch_tokens": 1024}),
    (WIDE, {"precision": "bf16", "micro_batch_tokens": 2048}),
    (WIDE, {"precision": "fp32", "micro_batch_tokens": 2048, "gradient_checkpointing": True}),
    (WIDE, {"precision": "bf16", "quantization": "nf4", "micro_batch_tokens": 4096}),
]


def measured(run, batch) -> int:
    """Bytes at the peak of two updates; on a CPU above the process that has everything imported, and no model."""
    from lorakit import registry
    from lorakit.batches import collate

    module = registry.load("engines", run.engine)
    engine = module.load(run.with_(model="tiny"))
    engine.backward(collate([{"ids": [1, 2, 3], "targets": [False, True, True]}], [0]))
    engine.close()
    engine = module.load(run)
    for _ in range(2):
        _, count = engine.backward(batch)
        engine.update(1e-4, count)
    return engine.memory()


def one(config: dict, changes: dict) -> dict:
    import numpy as np

    from lorakit import cost
    from lorakit.batches import collate
    from lorakit.run import Run

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE, folder, json.dumps(config)], check=True, capture_output=True)
        settings = {"quantization": "none", "gradient_checkpointing": False, "max_length": 512, "packing": True,
                    "micro_batch_size": 64, "global_batch_size": 64, **changes}
        run = Run(model=folder, data="-", engine="torch", **settings)
        rows = [{"ids": np.arange(512) % 250, "targets": np.ones(512, bool)}] * (run.micro_batch_tokens // 512)
        predicted = cost.memory(run)
        found = measured(run, collate(rows, range(len(rows))))
    return {"settings": changes, "predicted": predicted["total"], "measured": found, "parts": predicted,
            "off": predicted["total"] / found - 1}


# In a process of its own, so that the peak of making the model is not the run's.
MAKE = """
import sys, json, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from lorakit import base
AutoModelForCausalLM.from_config(LlamaConfig(**json.loads(sys.argv[2]))).save_pretrained(sys.argv[1])
base.tokenizer("tiny")[0].save_pretrained(sys.argv[1])
"""


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(*(json.loads(x) for x in sys.argv[1:3]))))
        return
    print(f"{'settings':<78} {'predicted':>10} {'measured':>10} {'off':>6}")
    lines = []
    for config, changes in TABLE:
        out = subprocess.run([sys.executable, __file__, json.dumps(config), json.dumps(changes)], check=True,
                             capture_output=True, text=True).stdout
        lines.append(json.loads(out.splitlines()[-1]))
        line = lines[-1]
        words = ", ".join(f"{k}={v}" for k, v in changes.items())
        print(f"{config['hidden_size']} wide, {words:<67} {line['predicted'] / 1e9:7.2f} GB"
              f" {line['measured'] / 1e9:7.2f} GB {line['off']:+6.0%}", flush=True)
    Path("outputs/bench").mkdir(parents=True, exist_ok=True)
    Path("outputs/bench/predicted.json").write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
