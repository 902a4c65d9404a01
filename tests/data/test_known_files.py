"""Rows in the form of well-known public data sets, written anew: read for what they mean, or refused with columns that fit."""

import json
import random

import pytest
import yaml

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.data.example import Example
from lorakit.data.matching import match
from lorakit.data.meanings import Choices

WORDS = (
    "river market doctor engine window garden letter bridge winter school planet copper silver music paper forest"
).split()
RNG = random.Random(0)


def said(n=6):
    return " ".join(RNG.choices(WORDS, k=n))


def turns():
    return [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]


# name: (a row by its number, schema, columns that are not used)
READ = {
    "Aya": (lambda i: {"inputs": said(), "targets": said(), "language": "English"}, "prompt_completion", ["language"]),
    "LIMA": (lambda i: {"conversations": [said(), said()], "source": "x"}, "sharegpt", ["source"]),
    "ARC": (
        lambda i: {
            "question": said(),
            "choices": {"text": [said(2) for _ in "ABCD"], "label": [*"ABCD"]},
            "answerKey": "ABCD"[i % 4],
        },
        "prompt_completion",
        [],
    ),
    "UltraFeedback": (
        lambda i: {"prompt": said(), "chosen": said(), "rejected": said(), "score_chosen": 8.0, "score_rejected": 5.0},
        "preference",
        [],
    ),
    "argilla": (
        lambda i: {
            "prompt": said(),
            "chosen": said(),
            "rejected": said(),
            "chosen-rating": 4,
            "rejected-rating": 2,
            "chosen-model": "a",
        },
        "preference",
        ["chosen-model"],
    ),
    "NuminaMath": (
        lambda i: {"problem": said(), "solution": said(), "messages": turns()},
        "messages",
        ["problem", "solution"],
    ),
    "Langfuse": (
        lambda i: {
            "input": json.dumps({"messages": [{"role": "user", "content": said()}]}),
            "output": json.dumps({"role": "assistant", "content": said()}),
        },
        "prompt_completion",
        [],
    ),
    "lists as text": (lambda i: {"prompt": "[3, 1]", "completion": "[1, 3]"}, "prompt_completion", []),
    "Prodigy": (
        lambda i: {"text": said(), "label": "ab"[i % 2], "answer": ("accept", "reject", "ignore")[i % 3]},
        "text_label",
        [],
    ),
    "questions and answers in a text": (lambda i: {"text": f"Question: {said()}\nAnswer: {said()}"}, "templated", []),
    "users and assistants in a text": (lambda i: {"text": f"User: {said()}\nAssistant: {said()}"}, "templated", []),
    "a line of prose": (lambda i: {"text": f"A: {said()}\nQ: {said()}"}, "text", []),
    "banking77": (lambda i: {"text": said(), "label": i % 7, "label_text": f"c{i % 7}"}, "text_label", ["label"]),
}  # fmt: skip
# name: (a row by its number, the column that decides, what to do about it)
REFUSED = {
    "airline tweets": (
        lambda i: {"airline_sentiment": ("good", "bad")[i % 2], "text": said(), "name": "x"},
        "airline_sentiment",
        "columns: {label: airline_sentiment}",
    ),
    "QNLI": (
        lambda i: {"question": said(), "sentence": said(), "label": i % 2},
        "question",
        "columns: {text: '{question} {sentence}', label: …}",
    ),
    "mail": (
        lambda i: {"subject": said(3), "text": said(), "label": ("ham", "spam")[i % 2]},
        "subject",
        "columns: {text: '{subject} {text}', label: …}",
    ),
    "SciQ": (
        lambda i: {"question": said(), "distractor1": said(2), "correct_answer": said(2), "support": said(20)},
        "distractor1",
        "'choices'",
    ),
    "support alone": (
        lambda i: {"question": said(), "answer": said(2), "support": said(20)},
        "support",
        "columns: {prompt: '{support} {question}', answer: …}",
    ),
    "Natural Instructions": (
        lambda i: {"definition": said(20), "inputs": said(), "targets": said(2)},
        "definition",
        "columns: {prompt: '{definition} {inputs}', answer: …}",
    ),
    "a question beside an instruction": (
        lambda i: {"instruction": said(), "question": said(), "answer": said()},
        "question",
        "columns: {prompt: '{question} {instruction}', answer: …}",
    ),
    "Ragas": (
        lambda i: {"question": said(), "answer": said(), "ground_truth": said()},
        "ground_truth",
        "columns: {answer: ground_truth}",
    ),
    "Yelp": (lambda i: {"stars": i % 5 + 1, "text": said()}, "stars", "columns: {label: stars}"),
    "reviews without pictures": (
        lambda i: {"rating": i % 5 + 1.0, "text": said(), "images": []},
        "rating",
        "columns: {label: rating}",
    ),
}  # fmt: skip
# name: (a row by its number, the columns that are advised, the schema that they lead to)
ADVISED = {
    "CNN": (lambda i: {"article": said(30), "highlights": said(), "id": str(i)}, "{prompt: article, answer: highlights}", "prompt_completion"),
    "XSum": (lambda i: {"document": said(30), "summary": said()}, "{prompt: document, answer: summary}", "prompt_completion"),
    "SAMSum": (lambda i: {"id": str(i), "dialogue": said(20), "summary": said()}, "{prompt: dialogue, answer: summary}", "prompt_completion"),
    "Spider": (lambda i: {"db_id": "d", "query": said(), "question": said()}, "{prompt: question, answer: query}", "prompt_completion"),
    "doctor": (lambda i: {"Description": said(), "Patient": said(), "Doctor": said()}, "{prompt: '{Description} {Patient}', answer: Doctor}", "prompt_completion"),
    "German": (lambda i: {"Frage": said(), "Antwort": said()}, "{prompt: Frage, answer: Antwort}", "prompt_completion"),
    "French": (lambda i: {"Question": said(), "Réponse": said()}, "{prompt: Question, answer: Réponse}", "prompt_completion"),
    "Chinese": (lambda i: {"问题": "水在哪里", "答案": f"在{i}号井"}, "{prompt: 问题, answer: 答案}", "prompt_completion"),
    "tickets": (
        lambda i: {"subject": said(3), "body": said(20), "answer": said(), "queue": "IT", "tag_1": "a"},
        "{prompt: '{subject} {body}', answer: answer}",
        "prompt_completion",
    ),
    "TruthfulQA": (
        lambda i: {"category": "c", "question": said(), "best_answer": said(), "incorrect_answers": [said()]},
        "{prompt: question, answer: best_answer}",
        "prompt_completion",
    ),
    "HellaSwag": (
        lambda i: {"ind": i, "ctx": said(9), "endings": [said() for _ in range(4)], "label": str(i % 4)},
        "{prompt: ctx, answer: label}",
        "prompt_completion",
    ),
    "MNLI": (lambda i: {"premise": said(), "hypothesis": said(), "label": i % 3, "idx": i}, "{text: '{premise} {hypothesis}', label: label}", "text_label"),
    "BoolQ": (lambda i: {"question": said(), "passage": said(), "label": i % 2}, "{text: '{question} {passage}', label: label}", "text_label"),
    "Quora": (
        lambda i: {"id": i, "question1": said(), "question2": said(), "is_duplicate": i % 2},
        "{text: '{question1} {question2}', label: is_duplicate}",
        "text_label",
    ),
    "AG News": (lambda i: {"title": said(3), "description": said(12), "label": i % 4}, "{text: '{title} {description}', label: label}", "text_label"),
    "cases": (lambda i: {"facts": said(30), "issue": said(), "decision": ("granted", "denied")[i % 2]}, "{text: '{facts} {issue}', label: decision}", "text_label"),
    "Jigsaw": (lambda i: {"comment_text": said(), "toxic": i % 2, "insult": 0}, "{text: comment_text, label: toxic}", "text_label"),
    "poems": (lambda i: {"Title": said(3), "Poem": said(30), "Poet": said(2)}, "{prompt: Title, answer: Poem}", "prompt_completion"),
    "numbered": (lambda i: {"1": said(20), "2": said()}, "{prompt: '1', answer: '2'}", "prompt_completion"),
    "a system turn and a text": (lambda i: {"system": said(20), "chat": said(30)}, "{text: chat}", "text"),
}  # fmt: skip
ADVISED |= {
    "clips": (
        lambda i: {"clip": f"{i}.wav", "phrase": said()},
        "{audio: clip, text: phrase}",
        "sound_text",
    ),
    "plants": (
        lambda i: {"shot": f"{i}.jpg", "healthy": i % 2},
        "{image: shot, label: healthy}",
        "image_label",
    ),
}
# No text in them is an answer.
WITHOUT = {
    "pixels": lambda i: {"label": i % 10, "pixel0": str(i), "pixel1": "7"},
    "Label Studio": lambda i: {"id": i, "data": {"text": said()}, "annotations": [{"result": []}]},
    "SQuAD's own file": lambda i: {"title": said(2), "paragraphs": [{"context": said()}]},
    "CoNLL": lambda i: {"tokens": ["a", "b"], "ner_tags": [0, 1]},
    "DROP": lambda i: {"passage": said(30), "question": said(), "answers_spans": {"spans": [said()]}},
}  # fmt: skip


def rows_of(make, n=20):
    return [Example(make(i), "f.jsonl", i + 1) for i in range(n)]


@pytest.mark.parametrize("name", READ)
def test_read(name):
    make, schema, unused = READ[name]
    rows = rows_of(make)
    found = match(rows, None, Choices())
    assert (found.schema, found.unused) == (schema, unused)
    assert registry.load("schemas", schema).convert(found.rename(rows[0].fields))


@pytest.mark.parametrize("name", REFUSED)
def test_a_column_that_decides_is_named_with_what_to_do(name):
    make, column, cure = REFUSED[name]
    with pytest.raises(LorakitError) as error:
        match(rows_of(make), None, Choices())
    assert error.value.value == column and cure in error.value.cure


@pytest.mark.parametrize("name", ADVISED)
def test_the_advised_columns_lead_to_a_schema(name):
    make, columns, schema = ADVISED[name]
    rows = rows_of(make)
    with pytest.raises(LorakitError) as error:
        match(rows, None, Choices())
    assert str(error.value).endswith(f"Name them with `columns`, e.g. columns: {columns}")
    found = match(rows, None, Choices(columns=yaml.safe_load(columns)))
    assert found.schema == schema
    assert registry.load("schemas", schema).convert(found.rename(rows[0].fields))


@pytest.mark.parametrize("name", WITHOUT)
def test_where_nothing_can_be_advised_nothing_is(name):
    with pytest.raises(
        LorakitError, match="Write rows with a prompt and its completion, or a text"
    ):
        match(rows_of(WITHOUT[name]), None, Choices())


def test_a_log_of_calls_is_a_conversation():
    make, schema, _ = READ["Langfuse"]
    found = registry.load("schemas", schema).convert(make(0))["messages"]
    assert [t["role"] for t in found] == ["user", "assistant"] and "{" not in found[0]["content"]


@pytest.mark.parametrize("plain", ["input", "output"])
def test_a_log_may_hold_json_on_one_side_alone(plain):
    row = READ["Langfuse"][0](0) | {plain: "as it is"}
    found = registry.load("schemas", "prompt_completion").convert(row)["messages"]
    assert [t["role"] for t in found] == ["user", "assistant"]
    assert found[plain == "output"]["content"] == "as it is"
    assert all("{" not in t["content"] for t in found)


def test_what_prodigys_user_did_not_accept_is_left_out():
    rows = rows_of(READ["Prodigy"][0])
    found = match(rows, None, Choices())
    assert found.reject(rows[0].fields) == ""
    assert found.reject(rows[1].fields) == "'answer' is 'reject': the row is not marked as good"


def test_examples_inside_a_prompt_stay_one_question():
    row = {"prompt": "Q: one\nA: two\nQ: three\nA:", "completion": "four"}
    found = registry.load("schemas", "prompt_completion").convert(row)["messages"]
    assert [t["content"] for t in found] == [row["prompt"], "four"]


def test_an_answer_of_true_or_false_is_to_be_a_word():
    with pytest.raises(Exception, match="'answer' is true, expected text: write the word .*yes"):
        registry.load("schemas", "prompt_completion").convert({"question": "a", "answer": True})


def test_turns_of_words_alone_begin_with_the_users():
    found = registry.load("schemas", "sharegpt").convert({"conversations": ["a", "b", "c", "d"]})
    assert [(t["role"], t["content"]) for t in found["messages"]] == [
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
    ]  # fmt: skip


def test_a_pair_whose_scores_contradict_it_is_left_out():
    schema = registry.load("schemas", "preference")
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 3.0}
    assert schema.convert(row | {"score_rejected": 3.0})["pair"]
    with pytest.raises(Exception, match="'score_chosen' is 3 and 'score_rejected' 5: the other"):
        schema.convert(row | {"score_rejected": 5.0})
