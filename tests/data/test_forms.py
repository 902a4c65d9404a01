"""Rows in the forms of other tools and public data sets: what is trained, or why the file is refused."""

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
        return [said(e.fields) for e in examples], report

    return call


def said(fields):
    out = [
        (m["role"], m["content"], *([m["weight"]] if "weight" in m else []))
        for m in fields["messages"]
    ]
    return [*out, ("rejected", fields["pair"]["rejected"]["content"])] if "pair" in fields else out


def asked(question, answer):
    return [("user", question), ("assistant", answer)]


U = {"role": "user", "content": "Safe?"}
A = {"role": "assistant", "content": "Boil it."}
TOLD = [("system", "Be brief."), *asked("Safe?", "Boil it.")]
READ = {
    "SQuAD": (
        {
            "title": "Camp",
            "context": "Camp 4 has 9 tents.",
            "question": "How many?",
            "answers": {"text": ["9", "nine"], "answer_start": [11, 11]},
        },
        asked("Camp 4 has 9 tents.\n\nHow many?", "9"),
    ),
    "SQuAD as pandas writes it into a cell": (
        {
            "question": "How many?",
            "answers": "{'text': array(['9'], dtype=object), 'answer_start': array([11])}",
        },
        asked("How many?", "9"),
    ),
    "context of several texts": (
        {"context": ["One.", "Two."], "question": "Q?", "answer": "A"},
        asked("One.\n\nTwo.\n\nQ?", "A"),
    ),
    "a column for each choice": (
        {"question": "Q?", "A": "red", "B": "green", "C": "blue", "answer": "B"},
        asked("Q?\n\nA. red\nB. green\nC. blue", "B. green"),
    ),
    "option_a": (
        {"question": "Q?", "option_a": "red", "option_b": "green", "answer": "option_b"},
        asked("Q?\n\nA. red\nB. green", "B. green"),
    ),
    "ARC": (
        {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        asked("Q?\n\n1. x\n2. y", "2. y"),
    ),
    "earlier turns as turns": (
        {"history": [U, A], "question": "And now?", "answer": "Drink."},
        [("user", "Safe?"), ("assistant", "Boil it.", 0.0), *asked("And now?", "Drink.")],
    ),
    "Gemini": (
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Safe?"}]},
                {"role": "model", "parts": [{"text": "Boil it."}]},
            ],
        },
        TOLD,
    ),
    "Bedrock": (
        {
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "Safe?"}]},
                {"role": "assistant", "content": [{"text": "Boil it."}]},
            ],
        },
        TOLD,
    ),
    "Cohere": (
        {
            "messages": [
                {"role": "System", "content": "Be brief."},
                {"role": "User", "content": "Safe?"},
                {"role": "Chatbot", "content": "Boil it."},
            ]
        },
        TOLD,
    ),
    "XTuner": (
        {"conversation": [{"system": "Be brief.", "input": "Safe?", "output": "Boil it."}]},
        TOLD,
    ),
    "speaker and text": (
        {"messages": [{"speaker": "user", "text": "Safe?"}, {"speaker": "bot", "text": "No."}]},
        asked("Safe?", "No."),
    ),
    "user and assistant": ({"user": "Safe?", "assistant": "No."}, asked("Safe?", "No.")),
    "Anthropic's old prompts": (
        {"prompt": "\n\nHuman: Safe?\n\nAssistant:", "completion": " No."},
        asked("Safe?", "No."),
    ),
    "Alpaca's template in the instruction": (
        {"instruction": "### Instruction:\nSafe?\n\n### Response:\n", "output": "No."},
        asked("Safe?", "No."),
    ),
    "a template in a user's turn": (
        {"messages": [{"role": "user", "content": "<s>[INST] Safe? [/INST]"}, A]},
        asked("Safe?", "Boil it."),
    ),
    "an arena": (
        {"prompt": "Safe?", "response_a": "Yes.", "response_b": "No.", "winner": "model_b"},
        [*asked("Safe?", "No."), ("rejected", "Yes.")],
    ),
    "an arena, one column for each outcome": (
        {
            "prompt": "Safe?",
            "response_a": "No.",
            "response_b": "Yes.",
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        [*asked("Safe?", "No."), ("rejected", "Yes.")],
    ),
    "PKU's pairs": (
        {"prompt": "Safe?", "response_0": "Yes.", "response_1": "No.", "better_response_id": 1},
        [*asked("Safe?", "No."), ("rejected", "Yes.")],
    ),
    "SetFit: a class by number and by name": (
        {"text": "no water", "label": 1, "label_text": "need"},
        asked("no water", "need"),
    ),
}


@pytest.mark.parametrize("form", READ)
def test_what_is_trained(load, form):
    row, expected = READ[form]
    rows, report = load([row] * 2)
    assert rows[0] == expected
    assert not report.rejected


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Safe?### Assistant: No.",
        "Human: Safe?\n\nAssistant: No.",
        "USER: Safe? ASSISTANT: No.</s>",
        "<|im_start|>user<|im_sep|>Safe?<|im_end|><|im_start|>assistant<|im_sep|>No.<|im_end|>",
        "<｜begin▁of▁sentence｜><｜User｜>Safe?<｜Assistant｜>No.<｜end▁of▁sentence｜>",
        "<|start|>user<|message|>Safe?<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Safe?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>No.<|END_OF_TURN_TOKEN|>",
    ],
)
def test_templated_text_becomes_turns(load, text):
    assert load([{"text": text}])[0] == [asked("Safe?", "No.")]


def test_a_system_prompt_of_mistral(load):
    rows, _ = load(
        [{"text": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Safe?[/INST]No.</s>"}]
    )
    assert rows == [[("system", "Be brief."), *asked("Safe?", "No.")]]


def test_a_transcript_that_a_user_pastes_stays(load):
    pasted = "Sum this up:\n\nHuman: Safe?\n\nAssistant: No."
    rows, _ = load([{"messages": [{"role": "user", "content": pasted}, A]}])
    assert rows == [asked(pasted, "Boil it.")]


REFUSED = {
    "numbers from 1 as answers": (
        [{"question": f"Q{i}?", "choices": ["a", "b"], "answer": 1 + i % 2} for i in range(4)],
        "count the choices from 1",
    ),
    "several scored answers": (
        [{"prompt": "Q?", "responses": ["a", "b"], "scores": [1, 5]}],
        "'responses' holds several answers",
    ),
    "reasoning under another name": (
        [{"Question": "Q?", "Complex_CoT": "We think.", "Response": "A"}],
        "may hold the reasoning",
    ),
    "a passage called text": (
        [{"text": "Camp 4 has 9 tents.", "question": "How many?", "answer": "9"}],
        "may belong to the question",
    ),
    "a summary beside a text": ([{"text": "Long.", "summary": "Short."}], "may be what to answer"),
    "a class under another name": (
        [{"text": f"t{i}", "coarse_label": i % 2} for i in range(4)],
        "may be the class of the text",
    ),
    "a column for each class": (
        [{"text": f"t{i}", "toxic": i % 2, "rude": (i + 1) % 2} for i in range(4)],
        "multi-label classification",
    ),
    "labels in one cell": (
        [{"text": f"t{i}", "label": ["a", "b", "a, b"][i % 3]} for i in range(6)],
        "several labels per row in 'label'",
    ),
    "numbers as text": (
        [{"text": f"t{i}", "label": f"0.{i + 1}"} for i in range(30)],
        "regression",
    ),
    "whole numbers among others": (
        [{"text": f"t{i}", "label": [1.0, 2.5][i % 2]} for i in range(6)],
        "regression",
    ),
    "columns of another language": (
        [{"问题": "安全吗?", "答案": "不"}],
        "{prompt: 问题, answer: 答案}",
    ),
    "columns inside a column": (
        [{"data": {"question": "Q?", "answer": "A"}}],
        "{prompt: data.question, answer: data.answer}",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_refused_by_name(load, form):
    rows, words = REFUSED[form]
    with pytest.raises(LorakitError) as error:
        load(rows)
    assert words in str(error.value)


def test_columns_inside_a_column_are_named_by_a_path(load):
    row = {"id": 1, "data": {"question": "Q?", "answer": "A"}}
    rows, report = load([row], columns={"prompt": "data.question", "answer": "{data.answer}!"})
    assert rows == [asked("Q?", "A!")]
    assert report.used == {"data": "prompt"} and report.unused == ["id"]


def test_a_tie_gives_no_pair(load):
    row = {"prompt": "Safe?", "response_a": "Yes.", "response_b": "No."}
    rows, report = load([row | {"winner": w} for w in ("a", "tie", "c")])
    assert rows == [[*asked("Safe?", "Yes."), ("rejected", "No.")]]
    assert [r.reason.split(",")[0].split(":")[0] for r in report.rejected] == [
        "neither answer won",
        "'winner' is 'c'",
    ]


@pytest.mark.parametrize("mark", ["train_detail", "training_detail"])
def test_marks_inside_a_turn_are_named(load, mark):
    detail = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    with pytest.raises(LorakitError, match=f"'{mark}' marks parts of a turn"):
        load([{"messages": [U, A | {mark: detail}]}])


# The forms of LLaMA-Factory's demo files


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"instruction": "解释这个理论。", "input": "日心说", "output": "地球绕太阳转。"}],
            asked("解释这个理论。\n\n日心说", "地球绕太阳转。"),
        ),
        (
            [
                {
                    "instruction": "And 3?",
                    "input": "",
                    "output": "6",
                    "system": "Be brief.",
                    "history": [["Double.", "Which?"]],
                }
            ],
            [
                ("system", "Be brief."),
                ("user", "Double."),
                ("assistant", "Which?", 0.0),
                *asked("And 3?", "6"),
            ],
        ),
        (
            [
                {
                    "conversations": [{"from": "human", "value": "Safe?"}],
                    "chosen": {"from": "gpt", "value": "No."},
                    "rejected": {"from": "gpt", "value": "Yes."},
                }
            ],
            [*asked("Safe?", "No."), ("rejected", "Yes.")],
        ),
        ([{"messages": [U, A], "images": []}], asked("Safe?", "Boil it.")),
        (
            [
                {
                    "conversations": [
                        {"from": "human", "value": "Safe?"},
                        {"from": "gpt", "value": "No."},
                    ],
                    "tools": "[]",
                }
            ],
            asked("Safe?", "No."),
        ),
    ],
    ids=["alpaca_zh", "alpaca_history", "dpo", "no_images", "sharegpt"],
)
def test_demo_files_are_read(load, rows, expected):
    found, _ = load(rows)
    assert found == [expected]


def test_marked_answers_are_read_with_their_marks(tmp_path):
    path = tmp_path / "kto.jsonl"
    rows = [{"messages": [U, A], "label": True}, {"messages": [U, A], "label": False}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, report = loading.load(str(path))
    assert report.schema == "unpaired" and [e.fields["desirable"] for e in examples] == [
        True,
        False,
    ]


def test_sharegpt_calls_are_read(tmp_path):
    path = tmp_path / "calls.jsonl"
    turns = [("human", "How warm?"), ("function_call", '{"name": "f", "arguments": {}}')]
    turns += [("observation", "{}"), ("gpt", "Very.")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    path.write_text(json.dumps({**row, "tools": '[{"name": "f"}]'}) + "\n")
    (example,), report = loading.load(str(path))
    assert report.schema == "tool_calls"
    roles = [turn["role"] for turn in example.fields["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_pretraining_text_is_read(tmp_path):
    path = tmp_path / "c4.json"
    path.write_text(json.dumps([{"text": "The river rose."}, {"text": "It fell."}]))
    examples, report = loading.load(str(path))
    assert report.schema == "text" and [e.fields["text"] for e in examples][1] == "It fell."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": [U, {"role": "tool_calls", "content": "[]"}, A]},
            "turn 2 is tool, expected assistant",
        ),
        (
            {"messages": [U, A], "videos": ["1.mp4"]},
            "'videos' holds pictures, sound or video",
        ),
        ({"messages": [U, A], "audios": ["1.mp3"]}, "'audios' holds pictures, sound or video"),
        (
            {"messages": [{"role": "user", "content": "<image>Who?"}, A], "images": ["1.jpg"]},
            "1.jpg: no such file",
        ),
    ],
    ids=["tool_calls", "videos", "audios", "lost_picture"],
)
def test_demo_files_are_refused_by_name(load, row, words):
    with pytest.raises(LorakitError) as error:
        load([row])
    assert words in str(error.value)


def test_demo_pictures_are_used(tmp_path, load):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    row = {"messages": [{"role": "user", "content": "<image>Who?"}, A], "images": ["1.jpg"]}
    path = tmp_path / "mllm.json"
    path.write_text(json.dumps([row]))
    examples, report = loading.load(str(path))
    assert report.schema == "image_messages" and len(examples[0].fields["media"]) == 1
    assert examples[0].fields["turns"][0] == {"role": "user", "content": "Who?", "images": 1}
