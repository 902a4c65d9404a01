"""Rows whose answers are calls of tools: OpenAI, ShareGPT, Hermes, xLAM; what is no call is refused by name."""

from __future__ import annotations

import json

import pytest

from lorakit.common.errors import BadRow
from lorakit.data.duplicates import fingerprint, own, prompt_key
from lorakit.data.example import Example
from lorakit.data.matching import find_schema
from lorakit.data.schemas import tool_calls, xlam
from lorakit.data.splitting import shuffle_answers

Q, RESULT, ANSWER = "Rain in Lima?", '{"mm": 3}', "Three millimetres."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "rain", "description": "Rain today.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": TOOL}]
CALL = {"name": "rain", "arguments": {"city": "Lima"}}
WRITTEN = {"name": "rain", "arguments": json.dumps(CALL["arguments"])}
FORMS = {
    "openai": {
        "messages": [
            {"role": "user", "content": Q},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": WRITTEN}]},
            {"role": "tool", "tool_call_id": "a", "content": RESULT},
            {"role": "assistant", "content": ANSWER},
        ],
        "tools": TOOLS,
    },
    "openai, older": {
        "messages": [
            {"role": "user", "content": Q},
            {"role": "assistant", "content": None, "function_call": WRITTEN},
            {"role": "function", "name": "rain", "content": RESULT},
            {"role": "assistant", "content": ANSWER},
        ],
        "functions": [TOOL],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": Q},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": RESULT},
            {"from": "gpt", "value": ANSWER},
        ],
        "tools": json.dumps([TOOL]),
    },
    "hermes": {
        "conversations": [
            {"from": "system", "value": f"You call functions. <tools>{json.dumps(TOOLS)}</tools>"},
            {"from": "human", "value": Q},
            {"from": "gpt", "value": f"<tool_call>\n{CALL}\n</tool_call>"},  # in Python's quotes
            {"from": "tool", "value": f"<tool_response>\n{RESULT}\n</tool_response>"},
            {"from": "gpt", "value": ANSWER},
        ],
    },
}  # fmt: skip


def named(row):
    return [Example({**row, "columns": row}, "f", 1)] * 2


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_forms(row):
    made = tool_calls.convert(row)
    asked, call, result, answer = made["messages"]
    assert (asked["content"], answer["content"], call["content"]) == (Q, ANSWER, "")
    assert [c["function"] for c in call["tool_calls"]] == [CALL]
    key = call["tool_calls"][0]["id"]
    assert result == {"role": "tool", "content": RESULT, "name": "rain", "tool_call_id": key}
    assert made["tools"] == TOOLS
    assert find_schema(named(row))[0] == "tool_calls"


def test_xlam():
    row = {
        "id": 1, "query": Q, "answers": json.dumps([CALL, CALL]),
        "tools": json.dumps([{"name": "rain", "description": "Rain today.", "parameters": {"city": {"type": "string"}}}]),
    }  # fmt: skip
    made = xlam.convert(row)
    assert made["tools"] == TOOLS
    assert [c["function"] for c in made["messages"][1]["tool_calls"]] == [CALL, CALL]
    assert find_schema(named(row))[0] == "xlam"


def test_rows_without_tools_stay_what_they_were():
    plain = {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": ANSWER}]}
    assert find_schema(named(plain))[0] == "messages"
    assert find_schema([*named(plain), *named(FORMS["openai"])])[0] == "tool_calls"
    assert tool_calls.convert(plain)["messages"] == plain["messages"]
    assert find_schema(named({**plain, "tools": []}))[0] == "messages"


def calling(call, **more):
    return {
        "messages": [{"role": "user", "content": Q}, {"role": "assistant", "tool_calls": [call]}],
        "tools": TOOLS,
        **more,
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (calling({"function": {"name": "rain", "arguments": '{"city": "Lima'}}),
         r"turn 2: the arguments of 'rain' is no JSON|turn 2: the arguments of 'rain'.*no JSON"),
        (calling({"function": {"name": "snow", "arguments": "{}"}}),
         r"turn 2 calls 'snow', which 'tools' does not define \(it defines rain\)"),
        (calling({"function": WRITTEN}, tools=None), "does not define .it defines none"),
        (calling({"function": {"arguments": "{}"}}), "turn 2 has a call without 'name'"),
        (calling({"function": {"name": "rain", "arguments": "[1]"}}), "are no object but list"),
        (calling({"function": WRITTEN}, tools="[{"), "'tools' is no JSON"),
        (calling({"function": WRITTEN}, tools=[{"description": "x"}]), "tool 1 of 'tools' has no 'name'"),
        ({**FORMS["openai"], "messages": FORMS["openai"]["messages"][:3]}, "last turn is not the assistant's"),
        ({**FORMS["openai"], "messages": FORMS["openai"]["messages"][::2]}, "roles out of order: turn 2 is tool"),
        ({"conversations": [{"from": "human", "value": Q}, {"from": "function_call", "value": "rain(Lima)"}],
          "tools": TOOLS}, "turn 2 is no JSON"),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_call_is_refused_by_name(row, words):
    with pytest.raises(BadRow, match=words):
        tool_calls.convert(row)


def test_calls_and_tools_are_part_of_a_rows_content():
    def example(city, tools=TOOLS):
        row = calling({"function": {"name": "rain", "arguments": {"city": city}}}, tools=tools)
        return Example(tool_calls.convert(row), "f", 1)

    more = [*TOOLS, {"type": "function", "function": {**TOOL, "name": "snow"}}]
    assert len({fingerprint(example(*a)) for a in (("Lima",), ("Rome",), ("Lima", more))}) == 3
    assert "Lima" in own(example("Lima"))
    assert prompt_key(example("Lima")) == prompt_key(example("Rome")) != 0


def test_the_control_deals_calls_among_calls_and_words_among_words():
    """So that a tool's result still follows a call."""
    rows = []
    for i in range(12):
        call = {"function": {"name": "rain", "arguments": {"city": f"city {i}"}}}
        turns = [
            {"role": "user", "content": f"Q {i}"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": RESULT},
            {"role": "assistant", "content": f"answer {i}"},
        ]
        rows.append(Example(tool_calls.convert({"messages": turns, "tools": TOOLS}), "f", i + 1))
    dealt = [e.fields["messages"] for e in shuffle_answers(rows, seed=0)]
    undealt = [e.fields["messages"] for e in rows]
    for place, kept in ((0, True), (1, False), (2, True), (3, False)):
        before, after = ([turns[place]["content"] for turns in some] for some in (undealt, dealt))
        assert ("tool_calls" in dealt[0][place]) == (place == 1)
        if place == 3:
            assert sorted(after) == sorted(before) and after != before
        elif kept:
            assert after == before
    cities = [t[1]["tool_calls"][0]["function"]["arguments"]["city"] for t in dealt]
    assert sorted(cities) == sorted(f"city {i}" for i in range(12)) != cities
