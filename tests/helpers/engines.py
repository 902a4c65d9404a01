"""Rows, settings and short curves for tests of engines."""

import numpy as np
import pytest

from lorakit.engines.torch import load
from lorakit.run import Run
from lorakit.tasks.batches import Batches, collate
from lorakit.training.loop import State, train

END, RATE = 257, 1e-3


SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 256,
    "eos_token_id": END,
    "pad_token_id": 258,
}


def settings(base, **changes):
    return Run(
        **{
            "model": base,
            "data": "-",
            "engine": "torch",
            "precision": "fp32",
            "quantization": "none",
            "max_length": 512,
            "packing": True,
            "gradient_checkpointing": False,
            **({} if changes.get("method") == "full" else {"alpha": 64}),
            "micro_batch_size": 8,
            "micro_batch_tokens": 4096,
            **changes,
        }
    )


def learnable(n, seed=0):
    """A random question, an answer that counts 10, 20, 30, … and ends."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        question = rng.integers(0, 250, rng.integers(3, 20)).tolist()
        answer = [10, 20, 30, 40, 50][: rng.integers(2, 6)] * int(rng.integers(1, 6)) + [END]
        rows.append(
            {"ids": question + answer, "targets": [False] * len(question) + [True] * len(answer)}
        )
    return rows


def noise(*lengths, seed=1):
    """Rows of random tokens, all but the first to be predicted."""
    rng = np.random.default_rng(seed)
    return [
        {"ids": rng.integers(0, 250, n).tolist(), "targets": [False] + [True] * (n - 1)}
        for n in lengths
    ]


def batches(rows, engine, micro=8, updates=30, size=8):
    return Batches(
        rows,
        np.array([len(r["ids"]) for r in rows]),
        global_batch_size=size,
        micro_batch_size=micro,
        micro_batch_tokens=4096,
        packing=engine.packing,
        seed=0,
        epochs=1,
        max_updates=updates,
    )


def history(engine, pieces, rate=RATE, state=None):
    lines = []
    train(
        engine,
        pieces,
        state or State(),
        lambda update: rate,
        lambda state, line: lines.append(line),
    )
    return lines


def shaken(engine, seed=0, by=0.1):
    """Adapters away from their start, where B is zero and half the gradients vanish."""
    rng = np.random.default_rng(seed)
    engine.set_weights(
        {
            n: w + by * rng.standard_normal(w.shape).astype(np.float32)
            for n, w in sorted(engine.weights().items())
        }
    )
    return engine


def gradients(engine, rows):
    for parameter in engine.trained.values():
        parameter.grad = None
    engine.backward(collate(rows, range(len(rows))))
    return np.concatenate([engine.trained[n].grad.numpy().ravel() for n in sorted(engine.trained)])


@pytest.fixture(scope="module")
def rows():
    return learnable(240)


@pytest.fixture(scope="module")
def curve(base, rows):
    """The whole global batch at once, packed: what all others are measured against."""
    engine = load(settings(base))
    return history(engine, batches(rows, engine)), engine.weights()
