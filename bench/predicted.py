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

MIDDLE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
WIDE = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 16000,
}
TABLE = [
    (MIDDLE, {"precision": "bf16", "micro_batch_tokens": 4096}),
    (MIDDLE, {"precision": "fp32", "micro_batch_tokens": 2048}),
    (MIDDLE, {"precision": "fp32", "micro_batch_tokens": 2048, "dropout": 0.1}),
    (MIDDLE, {"precision": "fp32", "method": "full", "micro_batch_tokens": 1024}),
    (WIDE, {"precision": "bf16", "micro_batch_tokens": 2048}),
    (WIDE, {"precision": "fp32", "micro_batch_tokens": 2048, "gradient_checkpointing": True}),
    (WIDE, {"precision": "bf16", "quantization": "nf4", "micro_batch_tokens": 4096}),
    ({"name": "vit-base"}, {"precision": "fp32", "task": "classify_image", "micro_batch_size": 16}),
    (
        {"name": "whisper-base"},
        {"precision": "fp32", "task": "transcribe", "micro_batch_size": 4, "max_length": 32},
    ),
    ({"name": "smolvlm-256m"}, {"precision": "fp32", "task": "chat_images", "micro_batch_size": 4}),
]


def measured(run, batch) -> int:
    """Bytes at the peak of two updates; on a CPU above the process that has everything imported, and no model."""
    from lorakit.common import registry
    from lorakit.tasks.batches import collate

    module = registry.load("engines", run.engine)
    engine = module.load(run.with_(model="tiny", task="chat"))
    engine.backward(collate([{"ids": [1, 2, 3], "targets": [False, True, True]}], [0]))
    engine.close()
    engine = module.load(run, classes=["a", "b"] if "label" in batch.values else ())
    for _ in range(2):
        _, count = engine.backward(batch)
        engine.update(1e-4, count)
    return engine.memory()


def rows_of(run, processor) -> tuple[list[dict], object]:
    """As many rows as the run takes at a time, as long as they can be; and what makes the model's inputs of them."""
    import numpy as np
    from PIL import Image

    from lorakit.common import registry

    if run.task == "chat":
        return [{"ids": np.arange(512) % 250, "targets": np.ones(512, bool)}] * (
            run.micro_batch_tokens // 512
        ), None
    task, seen = registry.load("tasks", run.task), Image.effect_noise((512, 512), 90).convert("RGB")
    if run.task == "classify_image":
        row = task.shown(seen, processor) | {"label": 0, "augment": False}
    elif run.task == "transcribe":
        row = task.heard(np.sin(np.arange(16000), dtype=np.float32), processor, "en")
        words = run.max_length - len(row["ids"])
        row |= {
            "ids": row["ids"] + [5] * words,
            "targets": [False] * len(row["ids"]) + [True] * words,
        }
    else:
        row = {"media": [task.kept(seen, processor)]}
        ids = task.with_pictures(
            task.turns_of({"question": "What?", "text": ""}, "")[:1], row["media"], processor
        )
        words = 512 - len(ids)
        row |= {"ids": ids + [5] * words, "targets": [False] * len(ids) + [True] * words}
    return [row] * run.micro_batch_size, lambda row, random: task.inputs(row, processor, None)


def one(config: dict, changes: dict) -> dict:
    from lorakit.models import base_model
    from lorakit.planning import memory
    from lorakit.run import Run
    from lorakit.tasks.batches import collate

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", MAKE, folder, json.dumps(config)],
            check=True,
            capture_output=True,
        )
        settings = {
            "quantization": "none",
            "gradient_checkpointing": False,
            "max_length": 512,
            "packing": True,
            "micro_batch_size": 64,
            "micro_batch_tokens": 8192,
            "global_batch_size": 64,
            "task": "chat",
            **changes,
        }
        run = Run(model=folder, data="-", engine="torch", **settings)
        rows, inputs = rows_of(run, base_model.reader(folder)[1])
        predicted = memory.memory(run)
        found = measured(run, collate(rows, range(len(rows)), inputs=inputs))
    return {
        "settings": changes,
        "predicted": predicted["total"],
        "measured": found,
        "parts": predicted,
        "off": predicted["total"] / found - 1,
    }


# In a process of its own, so that the peak of making the model is not the run's.
MAKE = """
import sys, json
from transformers import AutoConfig
from lorakit.models import served
from lorakit.models import reading
from lorakit.models import base_model as base
from lorakit.notebook.rehearse import fitted, tokenizer_of
folder, given = sys.argv[1], json.loads(sys.argv[2])
reader = reading.tokenizer("tiny")[0]
if "name" in given:
    name, spec = given["name"], base.spec(given["name"])
    reader = tokenizer_of(name, spec)[0]
    given = fitted(dict(spec.config), reader)
    reader = spec.reader(reader, given)
    config = AutoConfig.for_model(**given)
else:
    config = AutoConfig.for_model("llama", **given)
served.maker("auto", config, "made").from_config(config).save_pretrained(folder)
reader.save_pretrained(folder)
"""


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(*(json.loads(x) for x in sys.argv[1:3]))))
        return
    print(f"{'settings':<78} {'predicted':>10} {'measured':>10} {'off':>6}")
    lines = []
    for config, changes in TABLE:
        out = subprocess.run(
            [sys.executable, __file__, json.dumps(config), json.dumps(changes)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines.append(json.loads(out.splitlines()[-1]))
        line = lines[-1]
        words = ", ".join(f"{k}={v}" for k, v in changes.items())
        model = config.get("name") or f"{config['hidden_size']} wide"
        print(
            f"{model + ', ' + words:<78} {line['predicted'] / 1e9:7.2f} GB"
            f" {line['measured'] / 1e9:7.2f} GB {line['off']:+6.0%}",
            flush=True,
        )
    Path("outputs/bench").mkdir(parents=True, exist_ok=True)
    Path("outputs/bench/predicted.json").write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
