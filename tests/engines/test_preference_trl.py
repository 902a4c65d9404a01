"""Preference objectives beside TRL's trainers: the same rows, order, adapter and optimizer give the same curve."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.engines import settings
from helpers.models import byte_tokenizer
from transformers import AutoTokenizer

from lorakit.data.example import Example
from lorakit.data.schemas import preference
from lorakit.data.schemas import unpaired as unpaired_schema
from lorakit.engines.torch import load
from lorakit.tasks import preferences, unpaired
from lorakit.tasks.batches import collate, with_mean_ratio

pytestmark = pytest.mark.slow
UPDATES, SIZE, RATE = 20, 4, 1e-3


@pytest.fixture(params=["tiny", pytest.param("smollm2", marks=pytest.mark.real)])
def given(request, base):
    """(a base model, its tokenizer, pairs of an update, the rate)."""
    if request.param == "tiny":
        return base, byte_tokenizer(), SIZE, RATE
    folder = os.environ.get("LORAKIT_TEST_MODELS")
    if not folder:
        say = pytest.fail if os.environ.get("LORAKIT_REQUIRE_REAL") else pytest.skip
        say("no real models: set LORAKIT_TEST_MODELS to the folder that holds them")
    model = str(Path(folder).resolve() / "smollm2-135m-instruct")
    # Short rows: its updates take seconds. At 1e-3 SimPO's loss falls from 1.25 to 0.01, and what the two round
    # otherwise grows to 1.8e-4.
    return model, AutoTokenizer.from_pretrained(model), 2, 3e-4


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


def ours(base, rows, objective, adapter, encode=encoded, size=SIZE, rate=RATE):
    engine = load(settings(base, objective=objective, packing=True))
    engine.save(adapter)
    documents = engine.objective.documents
    made = [encode(row, i) for i, row in enumerate(rows)]
    for i, row in enumerate(made):  # the base's log-probabilities
        batch = collate([row], [i], documents=documents)
        some = [batch, batch.mismatched] if batch.mismatched else [batch]
        row["base_logps"] = np.concatenate([-engine.score_documents(b)[:, 0] for b in some])
    losses = []
    for u in range(UPDATES):
        here = range(u * size, (u + 1) * size)
        batch = collate([made[i] for i in here], here, documents=documents)
        (batch,) = with_mean_ratio(engine, [batch])
        total, count = engine.backward(batch)
        engine.update(rate, count)
        losses.append(total / count)
    return losses


def theirs(base, rows, adapter, folder, trainer, config, reader=None, rate=RATE, **options):
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapter, is_trainable=True
    )
    arguments = config(
        output_dir=str(folder), learning_rate=rate, lr_scheduler_type="constant", warmup_steps=0,
        max_steps=UPDATES, logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False, weight_decay=0.0, max_grad_norm=1.0,
        train_sampling_strategy="sequential", max_length=512, gradient_accumulation_steps=1, **options,
    )  # fmt: skip
    made = trainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=reader or byte_tokenizer(),
    )  # fmt: skip
    made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line]


def close(mine, other):
    apart = np.abs(np.subtract(mine, other))
    print(
        f"{len(mine)} losses from {mine[0]:.4f} to {mine[-1]:.4f}, at most {apart.max():.1e} apart"
    )
    assert len(other) == len(mine) == UPDATES and apart.max() <= 1e-4


@pytest.mark.parametrize("name, loss", [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_twenty_updates_equal_trl(base, tmp_path, name, loss):
    trl = pytest.importorskip("trl")
    rows = conversations(UPDATES * SIZE)
    mine = ours(base, rows, name, tmp_path / "adapter")
    other = theirs(
        base, rows, str(tmp_path / "adapter"), tmp_path / "out", trl.DPOTrainer, trl.DPOConfig,
        per_device_train_batch_size=SIZE, loss_type=[loss], beta=0.1,
    )  # fmt: skip
    close(mine, other)


def given_ids(kind):
    """TRL's trainer of pairs on rows that are tokenized: its own `tokenize_row` writes BOS and EOS around a template's."""

    class Tokenized(kind):
        def tokenize_row(self, feature, model=None):
            out = {}
            for side, key in (("chosen", ""), ("rejected", "rejected_")):
                ids, targets = feature[f"{key}ids"], feature[f"{key}targets"]
                out[f"{side}_input_ids"] = ids
                out[f"{side}_attention_mask"] = [1] * len(ids)
                out[f"{side}_labels"] = [
                    i if t else -100 for i, t in zip(ids, targets, strict=True)
                ]
            return out

    return Tokenized


def tokenized(prompt, answer, size):
    """Pairs of ids. TRL's ORPO also trains the prompt, and pools the chosen tokens of a micro-batch: with prompts of
    one token and chosen answers of one length it is the paper's loss, which is ours."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(UPDATES * size):
        asked = rng.integers(0, 250, prompt()).tolist()
        row = {"prompt": "", "chosen": "", "rejected": ""}
        for key, size in (("", answer()), ("rejected_", rng.integers(2, 9))):
            said = [*rng.integers(0, 250, size).tolist(), 257]
            row |= {f"{key}ids": asked + said}
            row |= {f"{key}targets": [False] * len(asked) + [True] * len(said)}
        rows.append(row)
    return rows


def test_twenty_updates_of_orpo_equal_trl(given, tmp_path):
    (base, reader, size, rate), adapter = given, str(tmp_path / "adapter")
    orpo = pytest.importorskip("trl.experimental.orpo")
    rows = tokenized(lambda: 1, lambda: 6, size)
    mine = ours(base, rows, "orpo", adapter, encode=lambda row, i: dict(row), size=size, rate=rate)
    other = theirs(
        base, rows, adapter, tmp_path / "out", given_ids(orpo.ORPOTrainer), orpo.ORPOConfig, reader, rate,
        per_device_train_batch_size=size, beta=0.1,
    )  # fmt: skip
    close(mine, other)


def test_twenty_updates_of_simpo_equal_trl(given, tmp_path):
    (base, reader, size, rate), adapter = given, str(tmp_path / "adapter")
    cpo, rng = pytest.importorskip("trl.experimental.cpo"), np.random.default_rng(1)
    rows = tokenized(lambda: rng.integers(3, 20), lambda: rng.integers(2, 9), size)
    mine = ours(base, rows, "simpo", adapter, encode=lambda row, i: dict(row), size=size, rate=rate)
    other = theirs(
        base, rows, adapter, tmp_path / "out", given_ids(cpo.CPOTrainer), cpo.CPOConfig, reader, rate,
        per_device_train_batch_size=size, beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0, loss_type="simpo",
    )  # fmt: skip
    close(mine, other)


def in_words(row, reader):
    """A row as TRL tokenizes it to the ids of ours: of turns it also trains what a template writes after the end."""
    prompt = reader.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    completion = row["completion"][0]["content"] + reader.eos_token
    return {"prompt": prompt, "completion": completion, "label": row["label"]}


def test_twenty_updates_of_kto_equal_trl(given, tmp_path):
    """TRL rotates the completions within each batch; so do these rows."""
    (base, reader, size, rate), adapter = given, str(tmp_path / "adapter")
    trl = pytest.importorskip("trl")
    rows = [
        {"prompt": r["prompt"], "completion": r[("chosen", "rejected")[i % 3 % 2]], "label": i % 3 != 1}
        for i, r in enumerate(conversations(UPDATES * size))
    ]  # fmt: skip

    def encode(row, number):
        example = Example({**unpaired_schema.convert(row), "columns": row}, "f", number)
        return unpaired.encode(example, reader, 512)[0]

    plain = [encode(row, i) for i, row in enumerate(rows)]

    def mismatched(row, number):
        first = number - number % size
        mine, other = plain[number], plain[first + (number - first - 1) % size]
        start, said = mine["answer_start"], other["ids"][other["answer_start"] :]
        return mine | {
            "other_ids": mine["ids"][:start] + said,
            "other_targets": [False] * start + [True] * len(said),
        }

    mine = ours(base, rows, "kto", adapter, encode=mismatched, size=size, rate=rate)
    written = [in_words(row, reader) for row in rows]
    other = theirs(
        base, written, adapter, tmp_path / "out", trl.KTOTrainer, trl.KTOConfig, reader, rate,
        per_device_train_batch_size=size, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0,
    )  # fmt: skip
    close(mine, other)
