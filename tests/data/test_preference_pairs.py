"""Pairs of answers as people keep them: TRL, UltraFeedback, HH-RLHF, OpenAI, ShareGPT; and what is no pair."""

from __future__ import annotations

import pytest

from lorakit.common.errors import BadRow
from lorakit.data.duplicates import fingerprint
from lorakit.data.example import Example
from lorakit.data.matching import find_schema
from lorakit.data.quality import preferences as quality
from lorakit.data.schemas import preference
from lorakit.data.splitting import swap_answers

Q, GOOD, BAD = "Is the well safe?", "Boil it first.", "Yes, drink it."
USER, ASSISTANT = {"role": "user", "content": Q}, "assistant"
SYSTEM = {"role": "system", "content": "Be brief."}


def said(words):
    return {"role": "assistant", "content": words}


FORMS = {
    "strings": {"prompt": Q, "chosen": GOOD, "rejected": BAD},
    "question column": {"question": Q, "chosen": GOOD, "rejected": BAD},
    "turns": {"prompt": [USER], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    "capital roles": {
        "chosen": [{"role": "User", "content": Q}, said(GOOD)],
        "rejected": [{"role": "User", "content": Q}, said(BAD)],
    },
    "implicit prompt": {"chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]},
    "ultrafeedback": {
        "prompt": Q, "prompt_id": "1", "chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)],
        "messages": [USER, said(GOOD)], "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "hh-rlhf": {
        "chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}",
    },
    "hh-rlhf prompt": {
        "prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": f" {GOOD}", "rejected": f" {BAD}",
    },
    "openai": {
        "input": {"messages": [USER], "tools": []},
        "preferred_output": [said(GOOD)], "non_preferred_output": [said(BAD)],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD},
    },
}  # fmt: skip


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_forms(row):
    made = preference.convert(row)
    assert [t["role"] for t in made["messages"]] == ["user", "assistant"]
    assert [t["content"].strip() for t in made["messages"]] == [Q, GOOD]
    assert made["pair"]["rejected"]["content"].strip() == BAD
    schema, _ = find_schema([Example({**row, "columns": row}, "f", 1)] * 2)
    assert schema == "preference"


def test_system_and_earlier_turns_are_the_prompt():
    turns = [SYSTEM, USER, said("From the river."), {"role": "user", "content": "And now?"}]
    made = preference.convert({"prompt": turns, "chosen": [said(GOOD)], "rejected": [said(BAD)]})
    assert made["messages"][:-1] == turns


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": Q, "chosen": GOOD, "rejected": GOOD + " "}, "equal"),
        ({"prompt": Q, "chosen": GOOD, "rejected": ""}, "'rejected' is empty"),
        ({"prompt": Q, "chosen": None, "rejected": BAD}, "'chosen' is null"),
        ({"prompt": Q, "chosen": GOOD, "rejected": 7}, "'rejected' is int"),
        ({"prompt": Q, "chosen": [said(GOOD)], "rejected": []}, "'rejected'"),
        ({"chosen": GOOD, "rejected": BAD}, "no prompt"),
        ({"prompt": [None], "chosen": GOOD, "rejected": BAD}, "no prompt"),
        ({"prompt": [{"role": ["user"]}], "chosen": GOOD, "rejected": BAD}, "no prompt"),
        ({"prompt": [None, USER], "chosen": GOOD, "rejected": BAD}, "turn 1 is NoneType"),
        (
            {
                "chosen": [USER, said(GOOD)],
                "rejected": [{"role": "user", "content": "Other?"}, said(BAD)],
            },
            "different prompts",
        ),
        ({"chosen": [USER, said(GOOD)], "rejected": [USER]}, "no assistant turn"),
    ],
)
def test_what_is_no_pair_is_named(row, words):
    with pytest.raises(BadRow, match=words):
        preference.convert(row)


def example(good, bad, number=1):
    made = preference.convert({"prompt": Q, "chosen": good, "rejected": bad})
    return Example({**made, "columns": {}}, "f", number)


def test_pairs_that_differ_in_the_rejected_answer_are_no_repetition():
    assert fingerprint(example(GOOD, BAD)) != fingerprint(example(GOOD, "No idea."))
    assert fingerprint(example(GOOD, BAD)) == fingerprint(example(GOOD, BAD, 2))


def test_the_control_swaps_half_of_the_pairs():
    before = [example(f"{GOOD} {i}", BAD, i) for i in range(200)]
    after = swap_answers(before, seed=0)
    swapped = [a.fields["messages"][-1]["content"] == BAD for a in after]
    assert 70 < sum(swapped) < 130 and after == swap_answers(before, seed=0)
    for a, b, swap in zip(after, before, swapped, strict=True):
        both = {a.fields["messages"][-1]["content"], a.fields["pair"]["rejected"]["content"]}
        assert both == {b.fields["messages"][-1]["content"], BAD} and (swap or a.fields == b.fields)


def checked(pairs):
    check = quality.Check(None, 64)
    for number, (good, bad) in enumerate(pairs, 1):
        check.see(example(good, bad, number), "train")
    return check


def test_length_bias_is_a_warning():
    (finding,) = checked([("long answer " * i, "no") for i in range(1, 31)]).findings()
    assert finding.level == "warning" and "longer one in 100% of 30 pairs" in finding.text
    (finding,) = checked([("aaa", "bb"), ("aa", "bbb")] * 15).findings()
    assert finding.level == "note" and "50%" in finding.text


def test_contradicting_pairs_are_named():
    findings = checked([(GOOD, BAD), (BAD, GOOD)]).findings()
    assert [(f.level, f.count, f.rows) for f in findings] == [
        ("warning", 1, ["f:2: prefers what f:1 rejects"])
    ]


def test_other_rows_are_passed_over():
    check = quality.Check(None, 64)
    check.see(Example({"messages": [USER, said(GOOD)], "columns": {}}, "f", 1), "train")
    assert check.findings() == [] and check.facts()["chosen_longer"] == 0
