"""Preference objectives beside TRL's trainers: the same rows, order, adapter and optimizer give the same curve."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
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


def encoded(row, number):
    example = Example({**preference.convert(row), "columns": row}, "f", number)
    return preferences.encode(example, byte_tokenizer(), 512)[0]


def ours(base, rows, objective, adapter):
    engine = load(settings(base, objective=objective, packing=True))
    engine.save(adapter)
    made = [encoded(row, i) for i, row in enumerate(rows)]
    for i, row in enumerate(made):  # the base's log-probabilities
        batch = collate([row], [i], documents=pairs.documents)
        row["base_logps"] = -engine.score_documents(batch)[:, 0]
    losses = []
    for u in range(UPDATES):
        here = range(u * SIZE, (u + 1) * SIZE)
        batch = collate([made[i] for i in here], here, documents=pairs.documents)
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
        train_sampling_strategy="sequential", max_length=512, gradient_accumulation_steps=1, **options,
    )  # fmt: skip
    made = trainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer()
    )  # fmt: skip
    made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line]


@pytest.mark.parametrize("name, loss", [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_twenty_updates_equal_trl(base, tmp_path, name, loss):
    trl = pytest.importorskip("trl")
    rows = conversations(UPDATES * SIZE)
    mine = ours(base, rows, name, tmp_path / "adapter")
    other = theirs(
        base, rows, str(tmp_path / "adapter"), tmp_path / "out", trl.DPOTrainer, trl.DPOConfig,
        per_device_train_batch_size=SIZE, loss_type=[loss], beta=0.1,
    )  # fmt: skip
    assert len(other) == UPDATES
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4)


def by_trl(name):
    """TRL's loss of mean log-probabilities (P,) of P pairs. Its ORPO and CPO trainers add tokens of their own to a row,
    and ORPO's trains the prompt too, so that only their losses can be compared."""
    if name == "orpo":
        kind = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
        me = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
        return lambda c, r: (-c - kind.odds_ratio_loss(me, c, r)[0]).mean()
    kind = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    me = SimpleNamespace(
        beta=2.0, simpo_gamma=1.0, loss_type="simpo", alpha=0.0, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return lambda c, r: kind.cpo_loss(me, c, r)[0].mean()


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_twenty_updates_of_plain_peft_with_trls_loss(base, tmp_path, name):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows, loss = conversations(UPDATES * SIZE), by_trl(name)
    mine = ours(base, rows, name, tmp_path / "adapter")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"), is_trainable=True
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def mean_logp(ids, targets):
        ids = torch.tensor([ids])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logps.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(targets[1:])].mean()

    other = []
    for u in range(UPDATES):
        some = [encoded(r, i) for i, r in enumerate(rows[u * SIZE : (u + 1) * SIZE])]
        chosen = torch.stack([mean_logp(r["ids"], r["targets"]) for r in some])
        rejected = torch.stack([mean_logp(r["rejected_ids"], r["rejected_targets"]) for r in some])
        total = loss(chosen, rejected)
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        other.append(total.item())
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4)
