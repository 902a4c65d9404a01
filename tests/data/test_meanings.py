"""Every column is used, or named; what marks a row or a turn is honoured; the richest form wins."""

import json

import pytest

from lorakit.common.errors import LorakitError
from lorakit.data import loading


@pytest.fixture
def load(tmp_path):
    """(rows, settings) -> what is said in each usable row, the report."""

    def call(rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        examples, report = loading.load(str(path), **settings)
        return [said(e.fields["messages"]) for e in examples], report

    return call


def said(messages):
    return [(m["role"], m["content"], *([m["weight"]] if "weight" in m else [])) for m in messages]


def asked(question, answer):
    return [("user", question), ("assistant", answer)]


def turns(*words, **marks):
    out = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
    out[1] |= marks
    return {"messages": out}


@pytest.mark.parametrize(
    ("row", "expected", "unused"),
    [
        (
            {"id": 7, "context": "Camp 4 has 9 tents.", "question": "How many?", "answer": "9"},
            asked("Camp 4 has 9 tents.\n\nHow many?", "9"),
            ["id"],
        ),
        (
            {
                "question": "One plus one?",
                "subject": "sums",
                "choices": ["1", "2", "3"],
                "answer": 1,
            },
            asked("One plus one?\n\nA. 1\nB. 2\nC. 3", "B. 2"),
            ["subject"],
        ),
        (
            {
                "question": "Safe?",
                "options": {"label": ["A", "B"], "text": ["yes", "no"]},
                "answer": "B",
            },
            asked("Safe?\n\nA. yes\nB. no", "B. no"),
            [],
        ),
        (
            {
                "instruction": "And 3?",
                "input": "",
                "output": "6",
                "history": [["Double.", "Which?"]],
            },
            [("user", "Double."), ("assistant", "Which?", 0.0), *asked("And 3?", "6")],
            [],
        ),
        (
            {"problem": "2+2?", "solution": "Two and two are 4.", "answer": "4"},
            asked("2+2?", "Two and two are 4."),
            ["answer"],
        ),
        (
            {
                "problem": "2+2?",
                "answer": "4",
                **turns("2+2?", "Long, so 4."),
                "generations": ["a"],
            },
            asked("2+2?", "Long, so 4."),
            ["problem", "answer", "generations"],
        ),
        ({"Prompt": "Where?", "Completion": "Here."}, asked("Where?", "Here."), []),
        (
            {
                "messages": [
                    {"role": "User", "content": "Where?"},
                    {"role": "Assistant", "content": "Here."},
                ]
            },
            asked("Where?", "Here."),
            [],
        ),
        (
            {
                "Messages": [
                    {"Role": "User", "Content": "Where?"},
                    {"Role": "Assistant", "Content": "Here.", "Weight": 1},
                ]
            },
            asked("Where?", "Here."),
            [],
        ),
        (
            {"messages": json.dumps(turns("Where?", "Here.")["messages"])},
            asked("Where?", "Here."),
            [],
        ),
        ({"question": "How many?", "answer": 58.0}, asked("How many?", "58"), []),
    ],
    ids=lambda x: None if isinstance(x, list) else "+".join(x),
)
def test_what_a_row_says_is_in_its_turns(load, row, expected, unused):
    rows, report = load([row] * 3)
    assert rows[0] == expected
    assert report.unused == unused


def test_unused_columns_are_one_line_of_the_report(load):
    row = {"prompt": "p", "completion": "c", **{f"x{i}": 1 for i in range(8)}}
    _, report = load([row])
    assert report.lines()[1] == "not used: 'x0', 'x1', 'x2', 'x3', 'x4' and 3 more"


# Rows marked as bad


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("verdict", True, False),
        ("is_correct", 1, 0),
        ("is_correct", "true", "false"),
        ("Accepted", "yes", "no"),
        ("feedback", "thumbs_up", "Thumbs Down"),
        ("user_feedback", "positive", "negative"),
        ("quality", "good", "bad"),
        ("deleted", False, True),
        ("is_toxic", 0, 1),
        ("marked_as_spam", "no", "yes"),
        ("Flagged", "", "true"),
    ],
)
def test_a_row_marked_as_bad_is_never_trained_as_good(load, column, good, bad):
    rows, report = load(
        [{"prompt": f"Q{i}?", "completion": f"A{i}", column: (good, bad)[i % 2]} for i in range(6)]
    )
    assert [r[-1][1] for r in rows] == ["A0", "A2", "A4"]
    assert [r.row for r in report.rejected] == [2, 4, 6]
    assert report.rejected[0].reason.endswith(
        ("the row is not marked as good", "the row is marked as bad")
    )
    assert report.used[column] == "marks bad rows"


@pytest.mark.parametrize(
    ("column", "values", "keep", "kept"),
    [
        ("rating", [5, 1, 4], ">= 4", ["A0", "A2"]),
        ("label", ["good-ish", "spam", "fine"], ["fine"], ["A2"]),
        ("score", [0.2, None, 0.9], "> 0.5", ["A2"]),
        ("label", [0, 1, 1], 1, ["A1", "A2"]),
        ("label", ["positive", "negative", "positive"], "negative", ["A1"]),
        ("upvotes", [3, -2, 40], ">= 3", ["A0", "A2"]),
        ("quality", ["gold", "silver", "gold"], ["gold"], ["A0", "A2"]),
    ],
)
def test_columns_that_may_mark_rows_are_decided_by_a_setting(load, column, values, keep, kept):
    given = [{"prompt": f"Q{i}?", "completion": f"A{i}", column: v} for i, v in enumerate(values)]
    with pytest.raises(LorakitError) as error:
        load(given)
    assert error.value.setting == "ignore_columns" and error.value.value == column
    assert [r[-1][1] for r in load(given, keep_rows={column: keep})[0]] == kept
    assert len(load(given, ignore_columns=[column])[0]) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "these look like preference pairs"),
        ({"text": "t", "label": ["a", "b"]}, "several labels per row in 'label'"),
        ({"text": "t", "label": 0.25}, "regression"),
        ({**turns("u", "a"), "audios": ["a.wav"]}, "holds pictures, sound or video"),
        ({**turns("u", "a"), "context": "c"}, "may belong to the question"),
        ({"text": "t", "parent_id": 3, "role": "user"}, "turns of one conversation"),
        ({"prompt": "p", "completion": "c", "sample_weight": 2}, "how much a row counts"),
    ],
    ids=lambda x: None if isinstance(x, str) else "+".join(x),
)
def test_data_of_other_kinds_are_refused_by_name(load, row, words):
    gives = "messages" if "chosen" in row else None  # what a task of single answers asks for
    with pytest.raises(LorakitError, match=words) as error:
        load([row] * 3, gives=gives)
    assert error.value.cure and len(str(error.value)) < 400


def test_what_somebody_wrote_as_feedback_is_no_verdict(load):
    given = [{"prompt": f"Q{i}?", "completion": f"A{i}", "feedback": f"F{i}"} for i in range(3)]
    assert len(load(given)[0]) == 3


def test_a_flag_beside_a_text_may_be_its_class(load):
    with pytest.raises(LorakitError, match="class of the text, or mark bad rows") as error:
        load([{"text": f"t{i}", "is_spam": i % 2 == 0} for i in range(4)])
    assert error.value.value == "is_spam"


def test_the_columns_that_are_proposed_hold_the_label(load):
    row = {"premise": "It rained all night.", "hypothesis": "The road is wet.", "label": "entails"}
    with pytest.raises(LorakitError) as error:
        load([row] * 3)
    assert "columns: {text: '{premise} {hypothesis}', label: label}" in str(error.value)


# Marks of turns


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"train": False},
        {"training": False},
        {"loss": False},
        {"loss_mask": 0},
        {"loss_weight": 0.0},
        {"train": "false"},
    ],
    ids=str,
)
def test_a_turn_marked_off_has_weight_nothing(load, mark):
    rows, _ = load([turns("Q?", "BAD", "Sure?", "GOOD", **mark)])
    assert rows == [
        [("user", "Q?"), ("assistant", "BAD", 0.0), ("user", "Sure?"), ("assistant", "GOOD")]
    ]


def test_marks_of_a_row(load):
    rows, report = load(
        [
            {**turns("a?", "b", "c?", "d"), "loss_mask": [0, 0, 0, 1]},
            {"prompt": "p", "completion": "c", "weight": 2} | turns("x?", "y"),
            {**turns("a?", "b"), "train": False},
            {**turns("a?", "b"), "weight": -1},
            {**turns("a?", "b"), "loss": 2.5},
            {**turns("a?", "b", weight=1, train=False)},
        ]
    )
    assert rows == [
        [("user", "a?"), ("assistant", "b", 0.0), ("user", "c?"), ("assistant", "d")],
        [("user", "x?"), ("assistant", "y", 2.0)],
    ]
    assert [r.reason for r in report.rejected] == [
        "every answer is marked not to be trained",
        "'weight' is '-1', expected true, false or a weight from 0",
        "'loss' is 2.5, expected true or false; a weight belongs into 'weight'",
        "turn 2 (assistant): marks that contradict: 'weight' is 1, 'train' is 0",
    ]


def test_a_user_turn_marked_to_be_trained_is_named(load):
    given = turns("a?", "b")
    given["messages"][0]["train"] = True
    _, report = load([turns("u?", "v"), given])
    assert "turn 1 (user) is marked 'train'; only the assistant's turns are trained" in (
        report.rejected[0].reason
    )
