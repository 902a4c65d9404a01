"""Files after public bug reports and users' files: the rows they give, or why they are refused."""

import pytest

from lorakit.common.errors import LorakitError
from lorakit.data import loading, sources

ROWS = {  # file -> what the first training row of the file says, user and assistant turns alternating; its report says
    "alpaca_history.jsonl": ["Double numbers for me.", "Of course, which?", "And for 0?", "0"],
    "kto.jsonl": ["How many litres for 0 people?", "I hate you, go away number 0."],
    "squad_flat.jsonl": [
        "The camp 0 has 0 tents and 0 wells, reports say.\n\nHow many tents has camp 0?",
        "0",
    ],
    "mmlu.jsonl": ["What is 0 plus one?\n\nA. 0\nB. 1\nC. 2\nD. 3", "B. 1"],
    "messages_and_qa.jsonl": ["Q0?", "Long reasoning, so 0."],
    "problem_solution_answer.jsonl": ["What is 0+0?", "We add 0 to 0 and so get 0."],
    "templated_text_llama2.jsonl": ["How many tents has camp 0?", "It has 0."],
    "templated_prompt.jsonl": ["How many tents has camp 0?", "It has 0."],
    "ndjson.txt": ["How many 0?", "0"],
    "listofturns.jsonl": ["How many 0?", "0"],
    "excel_sep.csv": ["How many 0?", "0,5"],
    "int_with_gaps.parquet": ["What is 1+1?", "2"],
    "turn_train_false.jsonl": ["Q0?", "BAD answer 0.", "Sure?", "GOOD answer 0."],
    "truecasing.jsonl": ["Write name number 0 in the house style.", "iPhone 0"],
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_mean_what_they_say(real_data, name):
    examples, _ = loading.load(str(real_data / "field" / name))
    assert [m["content"] for m in examples[0].fields["messages"]] == ROWS[name]


def test_marked_answers_keep_their_marks(real_data):
    """As conversations to imitate, only the good ones are read."""
    examples, report = loading.load(str(real_data / "field" / "kto.jsonl"))
    assert [e.fields["desirable"] for e in examples][:3] == [False, True, False]
    assert report.schema == "unpaired" and not report.rejected
    good, report = loading.load(str(real_data / "field" / "kto.jsonl"), gives="messages")
    assert good[0].fields["messages"][-1]["content"] == "15 litres." and len(report.rejected) == 15


def test_preference_pairs_keep_both_answers(real_data):
    (first, *_), report = loading.load(
        str(real_data / "field" / "dpo_prompt_chosen_rejected.jsonl")
    )
    assert [m["content"] for m in first.fields["messages"]] == ["Q0?", "good 0"]
    assert first.fields["pair"] == {"rejected": {"role": "assistant", "content": "bad 0"}}
    assert "24 rows, jsonl; schema preference" in str(report)


SETS = {  # file -> sizes of train, validation and test
    "long_system_prompt.jsonl": (80, 10, 10),
    "long_shared_instruction.jsonl": (80, 10, 10),
    "hf_layout": (40, 10, 10),
    "several_reasonings.jsonl": (48, 6, 6),
    "truecasing.jsonl": (32, 4, 4),
    "cjk_near_dup.jsonl": (48, 6, 6),
    "same_question_other_answers.jsonl": (50, 5, 5),
    "labels_0_to_11.jsonl": (192, 24, 24),
}


@pytest.mark.parametrize("name", SETS)
def test_sets(real_data, name):
    sets, _ = loading.prepare(sources.of_run(str(real_data / "field" / name)))
    assert tuple(map(len, sets.values())) == SETS[name]
    asked = [
        {e.fields["messages"][-2]["content"].removesuffix("请快") for e in some}
        for some in (sets["train"], sets["validation"], sets["test"])
    ]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])


def test_a_shared_system_prompt_is_no_leak(real_data):
    files = [
        str(real_data / "field" / f"long_system_prompt_{part}.jsonl") for part in ("train", "test")
    ]
    sets, report = loading.prepare(sources.of_run(files[0], test_data=files[1]))
    assert (len(sets["train"]), len(sets["test"]), report.rejected) == (72, 20, [])


REFUSED = {
    "multi_label.jsonl": "several labels per row in 'label'",
    "messages_with_audios.json": "the column 'audios' holds pictures, sound or video",
    "kaggle_spam.csv": "the columns v1, v2 fit no schema",
    "trailing_comma.json": "A comma stands before a closing bracket; remove it",
    "table.xlsx": "is no workbook that can be read",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(real_data, name):
    with pytest.raises(LorakitError, match=REFUSED[name]):
        loading.load(str(real_data / "field" / name))


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("conv.json", "turns", "What is seen in 0?"),
        ("messages.json", "turns", "What is seen in 0?"),
        ("qa.json", "question", "What is seen in 0?"),
        ("query_answer.json", "question", "What is seen in 0?"),
        ("alpaca.json", "question", "Describe 0"),
        ("qa_query_label.json", "question", "What is seen in 0?"),
    ],
)
def test_pictures_keep_their_question(real_data, name, field, expected):
    (first, *_), _ = loading.load(str(real_data / "field" / "llava" / name))
    asked = first.fields[field]
    assert (asked[0]["content"] if field == "turns" else asked) == expected
    assert len(first.fields["media"]) == 1
