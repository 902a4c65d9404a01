"""Documents end to end: literal rows, every token once, sources apart, held-out documents untouched."""

import json
from collections import Counter

import datasets
import pytest
from helpers.paths import ROOT

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.run import Run
from lorakit.tasks.dataset import prepare
from lorakit.tasks.joined import joined
from lorakit.tasks.rows import Rows

END = 0


def rows(*documents, length, source=None):
    """Rows of documents as `tasks/text.py` makes them: pieces that overlap by a token."""
    made = []
    for number, ids in enumerate(documents, 1):
        for i in range(0, len(ids) - 1, length - 1):
            piece = ids[i : i + length]
            made.append({"ids": piece, "targets": [False] + [True] * (len(piece) - 1), "cut": 0, "file": "f", "row": number, "group": None, "source": source})  # fmt: skip
    return made


def test_documents_follow_each_other_after_the_end_token():
    made = rows([1, 2, 3, 4, END], [5, 6, END], [7, END], length=4)
    out, note = joined(Rows(datasets.Dataset.from_list(made)), tasks.get("text"), 4, seed=0)
    assert "3 documents" in note and "3 rows" in note
    ids, targets = out.column("ids"), out.column("targets")
    stream = [*ids[0], *(t for piece in ids[1:] for t in piece[1:])]
    assert sorted("".join(map(str, stream)).split("0")) == ["", "1234", "56", "7"]
    assert [len(piece) for piece in ids] == [4, 4, 4]
    assert (
        targets == [[False, True, True, True]] * 3
    )  # each token of the stream but the first, once


def test_sources_stay_apart():
    made = rows([1, 1, END], [2, 2, END], length=8, source="a") + rows([3, 3, END], length=8, source="b")  # fmt: skip
    made[-1]["row"] = 9
    out, _ = joined(Rows(datasets.Dataset.from_list(made)), tasks.get("text"), 8, seed=1)
    assert out.column("source") == ["a", "b"]
    assert Counter(out.column("ids")[0]) == {1: 2, 2: 2, END: 2}


def test_held_out_documents_are_not_joined(tmp_path):
    lines = (ROOT / "data/relief.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    texts = [json.loads(line)["messages"][-1]["content"] for line in lines]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    settings = dict(data=str(file), task="text", max_length=64)
    apart = prepare(Run(**settings))
    together = prepare(Run(**settings, join_documents=True))
    for name in ("validation", "test"):
        assert together.rows[name].column("ids") == apart.rows[name].column("ids")
    assert set(together.rows["train"].lengths[:-1]) == {64}
    tokens = {n: sum(p.rows["train"].lengths - 1) for n, p in (("a", apart), ("t", together))}
    documents = len(set(apart.rows["train"].column("row")))
    assert tokens["t"] == tokens["a"] + documents - 1  # the first token of each is trained, too
    with pytest.raises(LorakitError, match="only plain text can be joined"):
        prepare(Run(data=str(ROOT / "data/triage.jsonl"), max_rows=40, join_documents=True))
