"""A row's columns become what a task asks for, or a reason that says what is wrong with the row."""

import pytest

from lorakit.errors import BadRow
from lorakit.schemas import alpaca, messages, prompt_completion, text


def roles(converted):
    return [(m["role"], m["content"]) for m in converted["messages"]]


def test_alpaca():
    assert roles(alpaca.convert({"instruction": "Name it.", "input": "A tap.", "output": "tap"})) == [
        ("user", "Name it.\n\nA tap."), ("assistant", "tap")]
    for nothing in ({}, {"input": ""}, {"input": None}, {"input": " \n"}):
        assert roles(alpaca.convert({"instruction": "Name it.", "response": "tap", **nothing})) == [
            ("user", "Name it."), ("assistant", "tap")]


def test_prompt_completion():
    expected = [("user", " p "), ("assistant", " c ")]  # white space is the user's
    for names in (("prompt", "completion"), ("question", "answer"), ("prompt", "response")):
        assert roles(prompt_completion.convert(dict(zip(names, (" p ", " c "), strict=True)))) == expected


def test_text():
    assert text.convert({"text": "The river rose.\n"}) == {"text": "The river rose.\n"}


def turns(*pairs):
    return [{"role": r, "content": c} for r, c in pairs]


def test_messages_keep_thoughts_and_nothing_else():
    given = turns(("system", "s"), ("user", "u"), ("assistant", "a"))
    given[2] |= {"reasoning_content": "r", "thinking": "t", "name": "n", "tool_calls": []}
    assert messages.convert({"messages": given})["messages"] == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "reasoning_content": "r", "thinking": "t"}]


@pytest.mark.parametrize(("schema", "fields", "words"), [
    (alpaca, {"output": "x"}, "column 'instruction' is missing"),
    (alpaca, {"instruction": "x"}, "column 'output' is missing"),
    (alpaca, {"instruction": " ", "output": "x"}, "'instruction' is empty"),
    (alpaca, {"instruction": "x", "output": None}, "'output' is null"),
    (alpaca, {"instruction": "x", "input": 3, "output": "x"}, "'input' is int, expected text"),
    (prompt_completion, {"prompt": ["x"], "completion": "x"}, "'prompt' is list, expected text"),
    (prompt_completion, {"question": "x", "answer": "\ud83d"}, "'answer' holds half a character"),
    (text, {"text": ""}, "'text' is empty"),
])
def test_a_row_that_does_not_fit_says_why(schema, fields, words):
    with pytest.raises(BadRow, match=words):
        schema.convert(fields)


@pytest.mark.parametrize(("given", "words"), [
    ([], "not a list of turns"),
    ("hi", "not a list of turns"),
    (["hi"], "turn 1 is str, expected an object"),
    (turns(("tool", "x")), "turn 1 has the role 'tool'; known: system, user, assistant"),
    ([{"content": "x"}], "turn 1 has the role None"),
    (turns(("user", "u"), ("assistant", "")), r"turn 2 \(assistant\): 'content' is empty"),
    (turns(("user", None), ("assistant", "a")), r"turn 1 \(user\): 'content' is null"),
    (turns(("user", "u")), "no assistant turn"),
    (turns(("user", "u"), ("assistant", "a"), ("user", "u")), "there is no answer to it"),
    (turns(("user", "u"), ("user", "v"), ("assistant", "a")), "turn 2 is user, expected assistant"),
    (turns(("system", "s"), ("assistant", "a")), "turn 2 is assistant, expected user"),
    (turns(("user", "u"), ("system", "s"), ("assistant", "a")), "a system turn stands first"),
    (turns(("system", "s"), ("system", "s"), ("user", "u"), ("assistant", "a")), "and once"),
    ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "turn 1 calls a tool"),
])
def test_turns_out_of_order_are_named(given, words):
    with pytest.raises(BadRow, match=words):
        messages.convert({"messages": given})
