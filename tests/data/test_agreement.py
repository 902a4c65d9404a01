"""`check` refuses what a run refuses, for the same reason, and nothing else."""

import json

import pytest
from helpers.bad_files import UNUSABLE

import lorakit
from lorakit.common.errors import LorakitError

REFUSES = "a run refuses these rows: "


def trained(run):
    """Why a run refuses its data, "" when it takes them; the rows it leaves out."""
    try:
        report = lorakit.prepare(run).report
    except LorakitError as error:
        return str(error), set()
    return "", {(r.where, r.reason) for r in report.rejected}


def checked(run):
    """Why `check` says that a run would refuse them; whether it finds every row usable; the rows it leaves out."""
    try:
        found = lorakit.check(run)
    except LorakitError as error:
        return str(error), False, set()
    wrong = [f.text for f in found.found.get("run", ())]
    reason = wrong[0].removeprefix(REFUSES) if wrong else ""
    return reason, found.usable, {(r.where, r.reason) for r in found.report.rejected}


def agree(run):
    refused, left_out = trained(run)
    reason, usable, rejected = checked(run)
    assert reason == refused
    assert not (refused and usable)
    if not refused:
        assert rejected <= left_out
    return refused


@pytest.mark.parametrize("name", UNUSABLE)
def test_files_that_cannot_be_used(tmp_path, monkeypatch, base, name):
    monkeypatch.chdir(tmp_path)
    content, _ = UNUSABLE[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert agree(lorakit.Run(data=name, model=base))


def chats(n, words=3, **turn):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Question {i} " + "word " * words},
                {"role": "assistant", "content": f"Answer {i} " + "reply " * words, **turn},
            ]
        }
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (chats(20), {}, ""),
        (chats(1), {}, "leave no validation row"),
        (chats(2), {}, "no row is left to train on"),
        (chats(20, 60), {"max_length": 700}, ""),
        (chats(20, 60), {"max_length": 400}, "no end-of-turn token is trained"),
        (chats(20, 60), {"max_length": 64}, "no train row can be used"),
        (chats(20, train=False), {}, "no usable row"),
        ([{"text": f"text {i}", "label": "same"} for i in range(20)], {}, "nothing to tell apart"),
        ([{"prompt": f"p{i}", "completion": "c", "label": bool(i % 2)} for i in range(40)], {}, ""),
        (
            [{"prompt": f"p{i}", "completion": "c", "rating": i % 5} for i in range(40)],
            {},
            "keep_rows",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_sound_files_and_settings(tmp_path, base, rows, settings, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = agree(lorakit.Run(data=str(path), model=base, **settings))
    assert words in refused and bool(refused) == bool(words)


FIELD = (
    "alpaca_history.jsonl cjk_near_dup.jsonl control_in_content.jsonl dpo_prompt_chosen_rejected.jsonl excel_cp1252.csv "
    "excel_cp1252_few.csv excel_sep.csv hf_layout int_with_gaps.parquet kaggle_spam.csv kto.jsonl labels_0_to_11.jsonl "
    "listofturns.jsonl long_multi.jsonl long_shared_instruction.jsonl long_system_prompt.jsonl messages_and_qa.jsonl "
    "messages_with_audios.json mmlu.jsonl multi_label.jsonl ndjson.txt problem_solution_answer.jsonl reasoning_key.jsonl "
    "same_question_other_answers.jsonl several_reasonings.jsonl squad_flat.jsonl table.xlsx templated_prompt.jsonl "
    "templated_text_llama2.jsonl trailing_comma.json truecasing.jsonl turn_train_false.jsonl with_system.jsonl"
).split()


@pytest.mark.parametrize("name", FIELD)
def test_files_of_users(real_data, base, name):
    agree(lorakit.Run(data=str(real_data / "field" / name), model=base, max_length=512))
