"""Preference objectives beside TRL's trainers: the same rows, order, adapter and optimizer give the same curve."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.engines import settings
from helpers.models import byte_tokenizer

from lorakit.data.example import Example
from lorakit.data.schemas import preference
from lorakit.engines.torch import load
from lorakit.tasks import pairs, preferences
from lorakit.tasks.batches import collate

pytestmark = pytest.mark.slow
UPDATES, SIZE, RATE = 20, 4, 1e-3


def conversations(n):
    rng, words = np.random.default_rng(0), ["well", "safe", "boil", "water", "first", "no", "drink"]
    some = lambda: " ".join(rng.choice(words, rng.integers(1, 6)))
    return [
        {
            "prompt": [{"role": "user", "content": f"{some()} {i}?"}],
            "chosen": [{"role": "assistant", "content": f"{some()} {i}"}],
            "rejected": [{"role": "assistant", "content": some()}],
        }
        for i in range(n)
    ]


def ours(base, rows, objective, adapter):
    engine = load(settings(base, objective=objective, packing=True))
    engine.save(adapter)
    encoded = [
        preferences.encode(Example({**preference.convert(r), "columns": r}, "f", i), byte_tokenizer(), 512)[0]
        for i, r in enumerate(rows)
    ]  # fmt: skip
    for i, row in enumerate(encoded):  # the base's log-probabilities
        batch = collate([row], [i], documents=pairs.documents)
        row["base_logps"] = -engine.score_documents(batch)[:, 0]
    losses = []
    for u in range(UPDATES):
        here = range(u * SIZE, (u + 1) * SIZE)
        batch = collate([encoded[i] for i in here], here, documents=pairs.documents)
        total, count = engine.backward(batch)
        engine.update(RATE, count)
        losses.append(total / count)
    return losses


def theirs(base, rows, adapter, folder, trainer, config, **options):
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True
    )
    arguments = config(
        output_dir=str(folder), learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0,
        max_steps=UPDATES, logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False, weight_decay=0.0, max_grad_norm=1.0,
        train_sampling_strategy="sequential", max_length=512, **options,
    )  # fmt: skip
    made = trainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer()
    )  # fmt: skip
    made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
def test_twenty_updates_equal_trl(base, tmp_path, name):
    """TRL averages ORPO's loss of the chosen answers over a micro-batch's tokens: with a pair a time, over a pair's."""
    rows = conversations(UPDATES * SIZE)
    mine = ours(base, rows, name, tmp_path / "adapter")
    whole = {"per_device_train_batch_size": SIZE, "gradient_accumulation_steps": 1}
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": SIZE}
    if name in ("dpo", "ipo"):
        trl = pytest.importorskip("trl")
        kinds, loss = (trl.DPOTrainer, trl.DPOConfig), "sigmoid" if name == "dpo" else "ipo"
        options = whole | {"loss_type": [loss], "beta": 0.1}
    elif name == "orpo":
        trl = pytest.importorskip("trl.experimental.orpo")
        kinds, options = (trl.ORPOTrainer, trl.ORPOConfig), alone | {"beta": 0.1}
    else:
        trl = pytest.importorskip("trl.experimental.cpo")
        kinds = trl.CPOTrainer, trl.CPOConfig
        options = whole | {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}
    other = theirs(base, rows, str(tmp_path / "adapter"), tmp_path / "out", *kinds, **options)
    assert len(other) == UPDATES
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4)
