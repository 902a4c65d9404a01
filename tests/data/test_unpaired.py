"""Single answers with a mark: forms, what is no mark, rows as literal lists, the control."""

from __future__ import annotations

import json

import pytest
from helpers.models import byte_tokenizer

import lorakit
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example
from lorakit.data.matching import find_schema
from lorakit.data.schemas import unpaired
from lorakit.data.splitting import shuffle_answers
from lorakit.tasks import rows
from lorakit.tasks import unpaired as task

Q, A = "Is the well safe?", "Boil it first."
TURNS = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
FORMS = {
    "trl": {"prompt": Q, "completion": A, "label": True},
    "trl turns": {"prompt": TURNS[:1], "completion": TURNS[1:], "label": True},
    "words": {"question": Q, "answer": A, "label": "good"},
    "llama factory": {"messages": TURNS, "kto_tag": True},
    "sharegpt": {
        "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
        "desirable": 1,
    },
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_forms(row):
    made = unpaired.convert(row)
    assert [t["content"].strip() for t in made["messages"][-2:]] == [Q, A]
    assert made["desirable"] is True and made["label"] == "desirable"
    examples = [Example({**row, "columns": row}, "f", 1)] * 2
    assert find_schema(examples)[0] == "unpaired"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "completion": A, "label": 1},  # may be a class
        {"prompt": Q, "completion": A, "label": "spam"},
    ],
    ids=str,
)
def test_what_is_no_mark(row):
    assert not unpaired.fits([Example(row, "f", 1)] * 2)


def test_a_row_whose_mark_says_nothing_is_named():
    with pytest.raises(BadRow, match="'label' is 'perhaps', expected true"):
        unpaired.convert({"prompt": Q, "completion": A, "label": "perhaps"})


def encoded(*answers, max_length=64):
    made = [unpaired.convert({"prompt": p, "completion": c, "label": g}) for p, c, g in answers]
    examples = [Example(fields, "f", i) for i, fields in enumerate(made)]
    sets, _, _ = rows.encode({"train": examples}, task, byte_tokenizer(), max_length)
    return list(sets["train"].dataset)


def test_rows_hold_the_answer_and_another_rows():
    tokenizer = byte_tokenizer()
    made = encoded(("Q", "yes", True), ("R", "no", False))
    shown = [
        "".join(tokenizer.decode([i]) if on else "." for i, on in zip(r[ids], r[on], strict=True))
        for r in made
        for ids, on in (("ids", "targets"), ("other_ids", "other_targets"))
    ]
    assert shown == ["....yes<|end|>", "....no<|end|>", "....no<|end|>", "....yes<|end|>"]
    prompts = [tokenizer.decode(r["other_ids"][: r["answer_start"]]) for r in made]
    assert ["Q" in p for p in prompts] == [True, False]
    assert [r["desirable"] for r in made] == [True, False] and made[0]["length"] == 8


def test_marks_of_one_kind_are_refused():
    with pytest.raises(LorakitError, match="every training answer is desirable") as refused:
        encoded(("Q", "yes", True), ("R", "no", True))
    assert "task: chat" in refused.value.cure


def test_a_file_of_one_kind_is_refused_by_check_and_train_alike(tmp_path, base):
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"p {i}", "completion": f"c {i}", "label": False} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)))
    run = lorakit.Run(data=str(path), model=base, output_dir=str(tmp_path))
    with pytest.raises(LorakitError, match=r"rows.jsonl: every row has the label 'undesirable'"):
        lorakit.prepare(run)
    checked = lorakit.check(run)
    assert not checked.usable and "'undesirable'" in checked.words()


def test_the_control_deals_the_marks_anew():
    made = [
        Example(unpaired.convert({"prompt": Q, "completion": A, "label": i < 10}), "f", i)
        for i in range(20)
    ]
    dealt = [e.fields["desirable"] for e in shuffle_answers(made, 0)]
    assert sum(dealt) == 10 and dealt != [i < 10 for i in range(20)]
    assert [e.fields["messages"] for e in shuffle_answers(made, 0)][3] == made[3].fields["messages"]
