"""The prompt of a pair is computed once: what goes through the model, and that losses and gradients stay the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.attention import plain
from helpers.engines import SMALL, settings

from lorakit.engines.torch import load
from lorakit.engines.torch.kernels import attention
from lorakit.engines.torch.prefixes import pack
from lorakit.tasks.batches import Batch, collate
from lorakit.tasks.objectives import dpo


def batch_of(*rows):
    """Each row: the ids of its documents."""
    flat = [ids for row in rows for ids in row]
    targets = [i > 0 for ids in flat for i in range(len(ids))]
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    ids = np.concatenate([np.asarray(ids, np.int64) for ids in flat])
    return Batch(ids, np.array(targets), np.array([len(ids) for ids in flat]), owners)


def test_the_beginning_of_a_row_s_documents_is_computed_once():
    made = pack(batch_of([[1, 2, 3, 4, 0], [1, 2, 5, 0]], [[1, 2, 0]]), share=True)
    assert made.ids.tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert made.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert made.lengths.tolist() == [4, 1, 2]
    inside = [0, 1, 2, 3, 5, 6, 7, 9, 10]  # but for the last tokens, which predict nothing
    assert made.where[inside].tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert made.keys.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert made.key_lengths.tolist() == [4, 3, 2]


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        ([[[1, 2, 3], [1, 2]]], [3, 1]),  # its last token stays its own
        ([[[1, 2], [1, 2, 3]]], [2, 1]),
        ([[[1, 2], [3, 2]]], [2, 2]),
        ([[[1, 2]], [[1, 2]]], [2, 2]),  # two rows
    ],
)
def test_what_each_document_computes(rows, lengths):
    rows = [[[*ids, 0] for ids in row] for row in rows]
    assert pack(batch_of(*rows), share=True).lengths.tolist() == lengths


def test_documents_without_a_target_are_whole():
    batch = batch_of([[1, 2, 3], [1, 4]])
    batch.targets[:] = False
    assert pack(batch, share=True).lengths.tolist() == [3, 1]


def test_a_pack_is_filled_up_by_a_document_of_nothing():
    batch = batch_of([[5, 6, 7, 0], [5, 8, 0]])
    made = pack(batch, multiple=4, share=True)
    assert made.ids.tolist() == [5, 6, 7, 8] and made.key_lengths.tolist() == [3, 2]
    made = pack(batch, multiple=8, share=True)
    assert made.ids.tolist() == [5, 6, 7, 8, 0, 0, 0, 0]
    assert made.lengths.tolist() == [3, 1, 4] and made.keys.tolist() == [0, 1, 2, 0, 3, 4, 5, 6, 7]
    made = pack(batch_of([[5, 6, 7], [5, 8]]), multiple=8)
    assert made.ids.tolist() == [5, 6, 7, 5, 8, 0, 0, 0] and made.keys is None
    assert made.lengths.tolist() == [3, 2, 3]
    assert made.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]


@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -1.0])])
def test_attention_equals_that_of_whole_documents(window, sinks):
    batch = batch_of([[*range(9)], [0, 1, 2, 3, 4, 5, 6, 7, 20, 21]], [[7, 8], [7, 9, 9]])
    batch.targets[:] = False  # nothing is left out
    made = pack(batch, share=True)
    documents = attention.Documents(
        made.lengths,
        torch.device("cpu"),
        keys=torch.tensor(made.keys),
        key_lengths=made.key_lengths,
    )
    found = []
    for whole in (False, True):
        q, k, v = (torch.randn(1, h, len(made.ids), 8, generator=torch.Generator().manual_seed(h))
                   .double() for h in (2, 1, 1))  # fmt: skip
        leaves = [x.requires_grad_() for x in (q, k, v)]
        if whole:
            q, k, v = (x[:, :, torch.tensor(made.where)] for x in leaves)
            out = plain(q, k, v, batch.lengths.tolist(), window, sinks)
        else:
            out, _ = attention.packed_attention(
                None, q, k, v, None, documents=documents, sliding_window=window, s_aux=sinks
            )
            out = out[:, torch.tensor(made.where)]
        weight = torch.arange(out.numel()).reshape(out.shape).cos()
        found.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def rows(n=4):
    rng, made = np.random.default_rng(0), []
    for i in range(n):
        asked = rng.integers(0, 250, 30).tolist()
        sides = [
            asked + [7] * (i % 2) + rng.integers(0, 250, rng.integers(1, 8)).tolist() for _ in "ab"
        ]
        marks = [[False] * 30 + [True] * (len(ids) - 30) for ids in sides]
        made.append(
            dict(
                zip(
                    ("ids", "rejected_ids", "targets", "rejected_targets"),
                    sides + marks,
                    strict=True,
                )
            )
        )
    return made  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_gradients_are_those_of_whole_documents(base, precision):
    engine, found = load(settings(base, objective="dpo", precision=precision)), []
    assert engine.passes.shares and "computed once" in engine.notes["prompts"][1]
    torch.manual_seed(0)
    for name, parameter in engine.trained.items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    batch = collate(rows(), range(4), documents=dpo.documents)
    for shares in (True, False):
        engine.passes.shares = shares
        total, _ = engine.backward(batch)
        gradients = torch.cat([p.grad.flatten() for p in engine.trained.values()])
        engine.optimization.drop_gradients()
        found.append((engine.score_documents(batch), float(total), gradients))
    (scores, total, mine), (whole_scores, whole_total, other) = found
    close = 1e-5 if precision == "fp32" else 2e-2
    np.testing.assert_allclose(scores, whole_scores, rtol=close, atol=close)
    assert total == pytest.approx(whole_total, rel=close)
    assert float((mine - other).norm() / other.norm()) < (1e-4 if precision == "fp32" else 5e-2)


def test_a_model_whose_shared_prompt_differs_computes_both(base, monkeypatch):
    honest = attention.by_document

    def blind(q, k, v, documents, *args):
        alone = attention.Documents(documents.lengths, q.device)
        return honest(q, k, v, alone, *args)

    monkeypatch.setattr(attention, "by_document", blind)
    engine = load(settings(base, objective="dpo"))
    assert engine.packing and not engine.passes.shares
    assert "it differs" in engine.notes["prompts"][1]


@pytest.mark.parametrize("changes", [{"packing": False}, {"neftune_alpha": 5.0}])
def test_where_both_answers_stand_behind_their_own_prompt(base, changes):
    assert not load(settings(base, objective="dpo", **changes)).passes.shares


def test_other_objectives_share_nothing(base):
    engine = load(settings(base))
    assert not engine.passes.shares and "prompts" not in engine.notes


def test_windows_and_sinks(tmp_path):
    from helpers.models import byte_tokenizer
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    options = {**SMALL, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    Gemma3ForCausalLM(Gemma3TextConfig(**options)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    engine = load(settings(str(tmp_path), objective="dpo"))
    assert engine.passes.shares
    batch = collate(rows(), range(4), documents=dpo.documents)
    mine = engine.score_documents(batch)
    engine.passes.shares = False
    np.testing.assert_allclose(mine, engine.score_documents(batch), rtol=1e-5, atol=1e-5)
