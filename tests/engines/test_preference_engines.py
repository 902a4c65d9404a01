"""Preference objectives in the engines: formulas, a gradient for each document, one curve whatever the batches."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.engines import settings

from lorakit.common.errors import LorakitError
from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import loss
from lorakit.run import Run
from lorakit.tasks import objectives, pairs
from lorakit.tasks.batches import Batches, collate, in_order, with_mean_ratio
from lorakit.tasks.objectives import kto
from lorakit.tasks.rows import Rows
from lorakit.training import reference
from lorakit.training.loop import State, train

PAIRS = ["dpo", "ipo", "orpo", "simpo"]
OBJECTIVES = [*PAIRS, "kto"]


def pair_rows(n=16, seed=0):
    """A question; chosen counts up and ends, rejected is noise and ends."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        question = rng.integers(0, 250, rng.integers(3, 20)).tolist()
        sides = []
        for answer in (
            [10, 20, 30, 40][: rng.integers(2, 5)],
            rng.integers(0, 250, rng.integers(2, 9)),
        ):
            answer = [*map(int, answer), 257]
            sides.append((question + answer, [False] * len(question) + [True] * len(answer)))
        (ids, targets), (other, others) = sides
        rows.append(
            {"ids": ids, "targets": targets, "rejected_ids": other, "rejected_targets": others,
             "length": len(ids) + len(other), "cut": 0}
        )  # fmt: skip
    return Rows(datasets.Dataset.from_list(rows), documents=pairs.documents)


def marked_rows(n=16, seed=0):
    """The answers of `pair_rows`, each alone: counting is desirable; `other_*`: the next row's answer."""
    made = []
    for i, row in enumerate(pair_rows(n, seed).dataset):
        side = "" if i % 2 == 0 else "rejected_"
        ids, targets = row[f"{side}ids"], row[f"{side}targets"]
        start = targets.index(True)
        made.append((ids[:start], ids[start:], i % 2 == 0))
    rows = []
    for (prompt, answer, good), (_, other, _) in zip(made, made[1:] + made[:1], strict=True):
        rows.append(
            {"ids": prompt + answer, "targets": [False] * len(prompt) + [True] * len(answer),
             "other_ids": prompt + other, "other_targets": [False] * len(prompt) + [True] * len(other),
             "desirable": good, "cut": 0}
        )  # fmt: skip
    return Rows(datasets.Dataset.from_list(rows), documents=kto.documents)


def rows_of(name, n=16):
    return marked_rows(n) if name == "kto" else pair_rows(n)


def curve(engine, rows, micro=8, updates=5):
    run = Run(data="-", micro_batch_size=4, micro_batch_tokens=4096)
    rows = rows.with_reference(reference.logps(engine, rows, run))
    made = Batches(
        rows, rows.lengths, global_batch_size=8, micro_batch_size=micro, micro_batch_tokens=4096,
        packing=engine.packing, seed=0, epochs=1, max_updates=updates,
    )  # fmt: skip
    lines = []
    train(engine, made, State(), lambda u: 1e-3, lambda state, line: lines.append(line))
    return [line["loss"] for line in lines]


# The kernel


@pytest.mark.parametrize("softcap, scale", [(None, 1.0), (5.0, 0.5)])
@pytest.mark.parametrize("trained", [False, True])
def test_each_document_has_a_gradient_of_its_own(monkeypatch, softcap, scale, trained):
    monkeypatch.setattr(loss, "SMALL", 40 * 32)  # several chunks
    torch.manual_seed(0)
    hidden = torch.randn(100, 16, requires_grad=True)
    weight = torch.randn(40, 16, requires_grad=trained)
    ids, document = torch.randint(0, 40, (100,)), torch.arange(100) // 30
    upstream = torch.tensor([1.0, -2.0, 0.0, 3.0])
    mine = loss.document_losses(hidden, weight, ids, document, 4, scale, softcap)
    wanted = [hidden, weight] if trained else [hidden]
    got = torch.autograd.grad((mine * upstream).sum(), wanted)
    logits = loss.logits(hidden, weight, scale, softcap) if softcap is None else (
        softcap * torch.tanh(scale * (hidden @ weight.t()) / softcap)
    )  # fmt: skip
    plain = F.cross_entropy(logits, ids, reduction="none")
    plain = torch.zeros(4).index_add(0, document, plain)
    torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-4)
    for a, b in zip(got, torch.autograd.grad((plain * upstream).sum(), wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# The formulas, written as their papers and TRL do


def by_paper(name, c, r, ref_c, ref_r, len_c, len_r):
    sigmoid = F.logsigmoid
    if name == "dpo":
        return -sigmoid(0.1 * ((c - ref_c) - (r - ref_r)))
    if name == "ipo":
        return ((c - ref_c) / len_c - (r - ref_r) / len_r - 1 / (2 * 0.1)) ** 2
    c, r = c / len_c, r / len_r
    if name == "simpo":
        return -sigmoid(2.0 * (c - r) - 1.0)
    odds = (c - r) - (torch.log1p(-torch.exp(c)) - torch.log1p(-torch.exp(r)))
    return -c - 0.1 * sigmoid(odds)


@pytest.mark.parametrize("name", PAIRS)
def test_formulas(name):
    objective, rng = objectives.get(name), np.random.default_rng(0)
    logps, reference = -rng.uniform(0.5, 80, 12), -rng.uniform(0.5, 80, 12)
    length = rng.integers(1, 30, 12).astype(float)
    values, options = {"reference": reference, "length": length}, dict(objective.OPTIONS)
    x = torch.tensor(logps, requires_grad=True)
    tensors = {k: torch.tensor(v) for k, v in values.items()}
    mine = objective.losses(torch, x, tensors, options)
    y = torch.tensor(logps, requires_grad=True)
    sides = [t[i::2] for t in (y, tensors["reference"], tensors["length"]) for i in (0, 1)]
    plain = by_paper(name, *sides)
    torch.testing.assert_close(mine, plain)
    slopes = [torch.autograd.grad(v.sum(), t)[0] for v, t in ((mine, x), (plain, y))]
    torch.testing.assert_close(*slopes)
    np.testing.assert_allclose(objective.losses(np, logps, values, options), plain.detach())


def test_formula_of_kto():
    """Equations 7 and 8 of arXiv 2402.01306, as TRL's KTOTrainer computes them."""
    rng = np.random.default_rng(0)
    logps, reference = -rng.uniform(0.5, 80, 8), -rng.uniform(0.5, 80, 8)
    good, mean = np.arange(8) % 2.0, 1.5
    values = {"reference": reference, "desirable": good, "mean_ratio": np.full(8, mean)}
    options = {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    x = torch.tensor(logps, requires_grad=True)
    mine = kto.losses(torch, x, {k: torch.tensor(v) for k, v in values.items()}, options)
    ratio = x - torch.tensor(reference)
    chosen = 1.5 * (1 - torch.sigmoid(0.2 * (ratio - mean)))
    rejected = 0.5 * (1 - torch.sigmoid(0.2 * (mean - ratio)))
    plain = torch.where(torch.tensor(good) > 0, chosen, rejected)
    torch.testing.assert_close(mine, plain)
    slopes = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (mine, plain)]
    torch.testing.assert_close(*slopes)
    np.testing.assert_allclose(kto.losses(np, logps, values, options), plain.detach())


def test_the_reference_point_is_that_of_the_whole_update(base):
    """Whatever the micro-batches, no gradient flows through it, and it is 0 at least."""
    engine, rows = load(settings(base, objective="kto")), marked_rows(8)
    run = Run(data="-", micro_batch_size=4, micro_batch_tokens=4096)
    rows = rows.with_reference(reference.logps(engine, rows, run))
    shift = np.zeros((8, 2))
    for sign in (1, -1):  # as if the base gave the mismatched answers sign nats less than it does
        shift[:, 1] = -sign * np.arange(8)
        moved = rows.with_reference(rows.reference + shift)
        for size in (8, 3):
            made = list(in_order(moved, moved.lengths, size, 4096, engine.packing))
            found = [b.values["mean_ratio"] for b in with_mean_ratio(engine, made)]
            np.testing.assert_allclose(np.concatenate(found), 3.5 if sign > 0 else 0, atol=1e-5)


def test_certain_answers_have_finite_odds():
    objective = objectives.get("orpo")
    values = {"reference": np.zeros(2), "length": np.ones(2)}
    x = torch.tensor([0.0, -1e-12], requires_grad=True)
    tensors = {k: torch.tensor(v) for k, v in values.items()}
    total = objective.losses(torch, x, tensors, {"beta": 0.1}).sum()
    assert math.isfinite(total.item()) and torch.autograd.grad(total, x)[0].isfinite().all()


# The engines


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_curve(base, name):
    """8 × 1 = 4 × 2, packed = padded; at update 0 DPO's loss is ln 2, KTO's 1/2; it falls."""
    rows = rows_of(name)
    one = curve(load(settings(base, objective=name)), rows)
    two = curve(load(settings(base, objective=name)), rows, micro=4)
    padded = curve(load(settings(base, objective=name, packing=False)), rows, micro=3)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    np.testing.assert_allclose(one, padded, rtol=1e-5, atol=1e-5)
    assert one[-1] < one[0]
    if name == "kto":
        assert one[0] == pytest.approx(0.5, abs=1e-6)
    if name == "dpo":
        assert one[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_mlx_computes_the_same(base, name):
    mlx = pytest.importorskip("lorakit.engines.mlx.loading")
    ours = mlx.load(settings(base, engine="mlx", objective=name))
    theirs = load(settings(base, objective=name))
    theirs.set_weights(ours.weights())
    mine, other = (curve(engine, rows_of(name), updates=4) for engine in (ours, theirs))
    np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_a_pair_is_never_torn_apart():
    rows = pair_rows(6)
    batch = collate([rows[i] for i in range(6)], range(6), documents=rows.documents)
    assert batch.count == 6 and batch.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for tokens in (1, 40, 90):
        parts = batch.parts(tokens)
        assert all(p.rows[0::2].tolist() == p.rows[1::2].tolist() for p in parts)
        assert sum(p.count for p in parts) == 6
        assert np.concatenate([p.ids for p in parts]).tolist() == batch.ids.tolist()
    assert len(batch.parts(1)) == 6


def test_what_a_prediction_says(base):
    engine, rows = load(settings(base, objective="dpo")), pair_rows(4)
    found = engine.predict(collate([rows[i] for i in range(4)], range(4), documents=rows.documents))
    assert found.shape == (4, 7) and (found[:, 1] == 1).all()
    scores = engine.score_documents(
        collate([rows[i] for i in range(4)], range(4), documents=rows.documents)
    )
    np.testing.assert_allclose(found[:, 3], -0.1 * scores[0::2, 0])
    np.testing.assert_allclose(found[:, 5:], scores[0::2, :2])
    assert (found[:, 2] == (found[:, 3] > found[:, 4])).all()


def test_out_of_memory_halves_between_rows(base, monkeypatch):
    engine, rows = load(settings(base, objective="dpo")), pair_rows(4)
    batch = collate([rows[i] for i in range(4)], range(4), documents=rows.documents)
    whole, plain = engine.predict(batch), engine.losses.score_documents

    def scarce(some):
        if len(some.starts) > 1:
            raise torch.OutOfMemoryError
        return plain(some)

    monkeypatch.setattr(engine.losses, "score_documents", scarce)
    np.testing.assert_allclose(engine.predict(batch), whole, atol=1e-5)


@pytest.mark.parametrize(
    "objective, words",
    [
        ("dpoo", "there is no objective 'dpoo'"),
        ({"dpo": {"betta": 1}}, "no option 'betta'"),
        ({"dpo": {}, "ipo": {}}, "not one objective"),
    ],
)
def test_unknown_objectives_and_options_are_refused(base, objective, words):
    with pytest.raises(LorakitError, match=words):
        load(settings(base, objective=objective))


def test_rows_without_pairs_are_refused(base):
    from lorakit import tasks

    with pytest.raises(LorakitError, match="needs rows with 'rejected_ids'") as refused:
        tasks.objective_for(Run(data="-", task="chat", objective="dpo"))
    assert refused.value.setting == "objective" and refused.value.cure
