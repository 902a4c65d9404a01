"""DPO of a real model beside TRL: the same pairs, token ids, order, adapters and optimizer.

    python bench/preferences.py MODEL            MODEL: a folder, e.g. of SmolLM2-135M-Instruct; about 10 minutes

Each variant is a process of its own with one thread. Tokens are those of both answers with their prompts, without
padding; seconds are CPU seconds of all updates but the first two, the reference's log-probabilities included.
TRL computes in fp32 without checkpointing: as it comes, a CPU without bf16 units takes minutes for an update.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
ROOT = Path(__file__).parents[1]
SIZE, RATE, WARM = 4, 1e-3, 2
UPDATES = {"lorakit": 20, "trl": 20}


def prepared(model: str, folder: Path) -> Any:
    from lorakit import Run, prepare

    run = Run(
        model=model, data=str(ROOT / "data/preferences.jsonl"), output_dir=str(folder), engine="torch",
        objective="dpo", precision="fp32", quantization="none", max_length=256, packing=True, max_rows=120,
        micro_batch_size=SIZE, micro_batch_tokens=4096, global_batch_size=SIZE, test_fraction=0.1,
        gradient_checkpointing=False,
    )  # fmt: skip
    return run, prepare(run).rows["train"]


def lorakit(model: str, folder: Path, updates: int) -> dict[str, Any]:
    import numpy as np

    from lorakit.engines.torch import load
    from lorakit.tasks.batches import collate
    from lorakit.training.reference import logps

    run, rows = prepared(model, folder)
    rows = rows.first(updates * SIZE)
    engine = load(run.with_(task="preferences"))
    engine.save(folder / "adapter")
    (folder / "rows.json").write_text(json.dumps([_plain(rows[i]) for i in range(len(rows))]))
    began = time.process_time()
    rows = rows.with_reference(logps(engine, rows, run))
    reference = (time.process_time() - began) * (updates - WARM) / updates
    losses, clock = [], []
    for update in range(updates):
        here = range(update * SIZE, (update + 1) * SIZE)
        batch = collate([rows[i] for i in here], here, documents=engine.objective.documents)
        total, count = engine.backward(batch)
        engine.update(RATE, count)
        losses.append(total / count)
        clock.append(time.process_time())
    used = clock[-1] - clock[WARM - 1] + reference
    return {"losses": losses, "tokens_per_second": int(np.sum(rows.lengths[WARM * SIZE :])) / used}


def _plain(row: Any) -> dict[str, list[int]]:
    start = int(row["answer_start"])
    ids, other = row["ids"].tolist(), row["rejected_ids"].tolist()
    return {"prompt_ids": ids[:start], "chosen_ids": ids[start:], "rejected_ids": other[start:]}


def trl(model: str, folder: Path, updates: int) -> dict[str, Any]:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    class Clock(TrainerCallback):
        seen: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seen.append(time.process_time())

    rows = json.loads((folder / "rows.json").read_text())[: updates * SIZE]
    base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    config = DPOConfig(
        output_dir=str(folder / "out"), learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0,
        max_steps=updates, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        weight_decay=0.0, max_grad_norm=1.0, train_sampling_strategy="sequential", max_length=256,
        per_device_train_batch_size=SIZE, gradient_accumulation_steps=1, beta=0.1, bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = Tokenized(
        model=PeftModel.from_pretrained(base, str(folder / "adapter"), is_trainable=True),
        args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    trainer.train()
    tokens = sum(
        2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"])
        for r in rows[WARM * SIZE :]
    )
    return {
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "tokens_per_second": tokens / (Clock.seen[-1] - Clock.seen[WARM - 1]),
    }


VARIANTS = {
    "lorakit": lorakit,
    "trl": trl,
}


def main() -> None:
    from peers import peak_rss

    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("model")
    given.add_argument("--variant", choices=VARIANTS)
    given.add_argument("--folder", type=Path)
    asked = given.parse_args()
    if asked.variant:
        found = VARIANTS[asked.variant](asked.model, asked.folder, UPDATES[asked.variant])
        print(json.dumps({"variant": asked.variant, **found, "peak_rss": peak_rss()}))
        return
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in VARIANTS:
            command = [sys.executable, __file__, asked.model, "--variant", name, "--folder", folder]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            lines.append(json.loads(said.splitlines()[-1]))
    for line in lines:
        apart = max(abs(a - b) for a, b in zip(line["losses"], lines[0]["losses"], strict=False))
        print(
            f"{line['variant']}: {line['tokens_per_second']:.0f} real tokens per CPU second, "
            f"{line['peak_rss'] / 1e9:.2f} GB at most, {len(line['losses'])} losses from "
            f"{line['losses'][0]:.6f} to {line['losses'][-1]:.4f}, at most {apart:.1e} from lorakit's"
        )


if __name__ == "__main__":
    main()
