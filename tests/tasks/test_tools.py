"""Tool calls in chat templates: exactly calls and answers are trained; what is read from generated words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.models import byte_tokenizer

from lorakit.common.errors import BadRow
from lorakit.data.example import Example
from lorakit.data.schemas import tool_calls
from lorakit.results.metrics import call_match, call_name, call_valid
from lorakit.tasks import calls, chat, tools

MARKS = ("<|im_end|>", "<|eot_id|>", "<|call|>", "<|end|>", "<|return|>", "<|observation|>", "<|user|>",
         "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<turn|>", "<|START_ACTION|>", "<|END_ACTION|>",
         "<|tool_call>", "<tool_call|>", "<|tool_response>", '<|"|>', "<|tool_call_start|>", "<|tool_call_end|>")  # fmt: skip
ROW = {
    "messages": [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "rain", "arguments": {"at": "Rio"}}}]},
        {"role": "tool", "content": "wet"},
        {"role": "assistant", "content": "Yes."},
    ],
    "tools": [{"type": "function", "function": {"name": "rain", "description": "d", "parameters": {
        "type": "object", "properties": {"at": {"type": "string", "description": "p"}}, "required": ["at"]}}}],
}  # fmt: skip
# template -> the trained stretches of all rows
TRAINED = {
    "qwen2_5": ['<tool_call>\n{"name": "rain", "arguments": {"at": "Rio"}}\n</tool_call><|im_end|>', "Yes.<|im_end|>"],
    "qwen3_instruct_2507": ['<tool_call>\n{"name": "rain", "arguments": {"at": "Rio"}}\n</tool_call><|im_end|>', "Yes.<|im_end|>"],
    "llama3_1": ['{"name": "rain", "parameters": {"at": "Rio"}}<|eot_id|>', "Yes.<|eot_id|>"],
    "llama3_2": ['{"name": "rain", "parameters": {"at": "Rio"}}<|eot_id|>', "Yes.<|eot_id|>"],
    "qwen3_5_nothink": ["<tool_call>\n<function=rain>\n<parameter=at>\nRio\n</parameter>\n</function>\n</tool_call><|im_end|>", "Yes.<|im_end|>"],
    "nemotron_3_nano": ["</think>\n<tool_call>\n<function=rain>\n<parameter=at>\nRio\n</parameter>\n</function>\n</tool_call>\n<|im_end|>", "</think>Yes.<|im_end|>"],
    "lfm2_2_5": ["<|tool_call_start|>[rain(at='Rio')]<|tool_call_end|><|im_end|>", "Yes.<|im_end|>"],
    "gemma4": ['<|tool_call>call:rain{at:<|"|>Rio<|"|>}<tool_call|><|tool_response>', "Yes.<turn|>"],
    "gptoss": [' to=functions.rain<|channel|>commentary json<|message|>{"at": "Rio"}<|call|>', "<|channel|>final<|message|>Yes.<|return|>"],
}  # fmt: skip


def stock(name):
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    file = folder / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"the installed trl has no template {name}")
    made = byte_tokenizer()
    made.add_special_tokens(
        {"additional_special_tokens": list(MARKS)}, replace_extra_special_tokens=False
    )
    made.chat_template = file.read_text(encoding="utf-8")
    return made


def encoded(tokenizer, row=ROW, max_length=10_000):
    fields = tool_calls.convert(row)
    return chat.encode(Example(fields, "f", 1), tokenizer, max_length)


def trained(tokenizer, rows):
    """The trained stretches of rows as text."""
    out, before = [], False
    for row in rows:
        for token, on in zip(row["ids"], row["targets"], strict=True):
            if on:
                out = [*out, ""] if not before else out
                out[-1] += tokenizer.decode([token])
            before = on
        before = False
    return out


@pytest.mark.parametrize("name", TRAINED)
def test_exactly_calls_and_answers_are_trained(name):
    tokenizer = stock(name)
    rows = encoded(tokenizer)
    assert trained(tokenizer, rows) == TRAINED[name]
    assert not any(row.get("lost") for row in rows)
    text = tokenizer.decode(rows[-1]["ids"])
    assert "wet" in text and ("description" in text or "// d" in text)


@pytest.mark.parametrize("name", TRAINED)
def test_the_call_is_what_is_scored(name):
    tokenizer = stock(name)
    row = next(row for row in encoded(tokenizer) if row.get("answer_start"))
    prompt = tokenizer.decode(row["ids"][: row["answer_start"]])
    assert "wet" not in prompt and row["prompt"] == "Q"
    # Gemma 4's quotes are special tokens, which neither a reference nor an answer holds
    arguments = '"{at:Rio}"' if name == "gemma4" else '{"at": "Rio"}'
    assert calls.comparable(row["reference"]) == [("rain", arguments)]


def test_a_template_that_knows_no_tools_gets_them_in_words():
    plain = byte_tokenizer()
    made = tools.reader(plain)
    assert made is not plain and tools.reader(plain) is made and tools.reader(made) is made
    assert trained(made, encoded(plain)) == [
        '<tool_call>\n{"name": "rain", "arguments": {"at": "Rio"}}\n</tool_call><|end|>', "Yes.<|end|>"
    ]  # fmt: skip
    text = made.decode(encoded(plain)[0]["ids"])
    assert "<|user|><tool_response>\nwet\n</tool_response><|end|>" in text
    assert text.startswith("<|system|>You can call these functions:\n<tools>\n{")
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    for ask in (True, False):  # without tools nothing changes
        given = {"tokenize": False, "add_generation_prompt": ask}
        assert made.apply_chat_template(turns, **given) == plain.apply_chat_template(turns, **given)


def test_a_server_reads_the_calls_of_such_a_template(tmp_path):
    from transformers import AutoTokenizer

    tools.reader(byte_tokenizer()).save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    asked = saved.apply_chat_template(
        ROW["messages"][:1], tools=ROW["tools"], tokenize=False, add_generation_prompt=True
    )
    said = '<tool_call>\n{"name": "rain", "arguments": {"at": "Rio"}}\n</tool_call><|end|>'
    found = saved.parse_response(said, prefix=asked)
    assert found["tool_calls"][0]["function"] == {"name": "rain", "arguments": {"at": "Rio"}}
    assert saved.parse_response("Yes.<|end|>", prefix=asked)["content"] == "Yes."


def test_results_side_by_side_are_one_turn():
    made = [{"function": {"name": "rain", "arguments": {"at": c}}} for c in ("Rio", "Lima")]
    turns = [
        ROW["messages"][0],
        {"role": "assistant", "content": "Look:", "tool_calls": made},
        {"role": "tool", "content": "wet"},
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "Both."},
    ]
    (row,) = encoded(byte_tokenizer(), {**ROW, "messages": turns})
    text = byte_tokenizer().decode(row["ids"])
    assert text.count("<|user|>") == 2 and "wet\n</tool_response>\n<tool_response>\ndry" in text
    assert calls.comparable(row["reference"]) == [
        ("rain", '{"at": "Lima"}'),
        ("rain", '{"at": "Rio"}'),
    ]


def test_a_control_token_in_a_call_is_refused():
    row = json.loads(json.dumps(ROW).replace("Rio", "<|end|>"))
    with pytest.raises(BadRow, match="control token '<|end|>'"):
        encoded(byte_tokenizer(), row)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"name": "f", "parameters": {"b": 1, "a": 2}}', [("f", '{"a": 2, "b": 1}')]),
        ('[{"name": "f", "arguments": {}}]', [("f", "{}")]),
        ('f{"a": 1}', [("f", '{"a": 1}')]),
        ('to=functions.f commentary json{"a": 1}', [("f", '{"a": 1}')]),
        ("It rains.", []),
        ('<tool_call>\n{"name": "f", "arguments": {"a": ', None),
        ("<tool_call>\nf(1)\n</tool_call>", None),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}]', [("f", '{"a": 1}')]),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abc12[ARGS]{}', [("f", '{"a": 1}'), ("g", "{}")]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', [("f", '{"a": 1}')]),
        ('{"name": "g", "parameters": {}}; {"name": "f", "parameters": {}}', [("f", "{}"), ("g", "{}")]),
        ('<|python_tag|>f.call(a="x, y)", b=2)', [("f", '{"a": "x, y)", "b": 2}')]),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', [("f", '{"a": 1}')]),
        ('[{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}]', [("f", '{"a": 1}')]),
        ('function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>', [("f", '{"a": 1}')]),
        ("Look: [g(), f(a=[1, {'b': None}])]", [("f", '{"a": [1, {"b": null}]}'), ("g", "{}")]),
        ("<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x y</arg_value>\n<arg_key>b</arg_key>\n<arg_value>[1]</arg_value>\n</tool_call>", [("f", '{"a": "x y", "b": [1]}')]),
        ("<tool_call>g</tool_call>", [("g", "{}")]),
        ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\ny\n</parameter>\n</function>\n</tool_call>", [("f", '{"a": 1, "b": "x\\ny"}')]),
        ("<function=f>\n<parameter=a>\n1", None),
        ("<function=g></function><function=f>", None),
        ('<|tool_call>call:f{a:<|"|>x: {y}<|"|>,b:{c:true}}<tool_call|>', [("f", '{"a": "x: {y}", "b": {"c": true}}')]),
        ("call:f{a:x}call:g{}", [("f", '"{a:x}"'), ("g", "{}")]),
        ("[f(1)]", []),
        ("[f(a=b)]", None),
        ("See [the map](x) or {this}", None),
        ("[f(" * 40 + ")]" * 200, [("f", "{}")]),
    ],
)  # fmt: skip
def test_calls_are_read_from_words(said, expected):
    assert calls.comparable(said) == expected


def test_what_stands_before_a_call_and_text_by_definition():
    said = "I look.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
    tools = [{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]
    (call,) = made = calls.found(said, tools)
    assert call.arguments == {"a": "1"} and calls.said_before(said, made) == "I look."
    for said in ('[TOOL_CALLS] [{"name": "f", "arguments": {}}]', 'to=functions.f commentary json{"a": 1}',
                 "<|tool_call_start|>[f(a=1)]<|tool_call_end|>", '<|python_tag|>{"name": "f", "parameters": {}}'):  # fmt: skip
        assert calls.said_before(said, calls.found(said)) == ""
    assert calls.said_before("No.", []) == "No."


def test_metrics():
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    said = [
        call,
        call.replace("1", "1.0"),
        call.replace("1", "2"),
        call.replace('"f"', '"g"'),
        call[:30],
        call,
        "No.",
    ]
    references = [call] * 5 + ["No.", "No."]
    found = {
        m.__name__.rpartition(".")[2]: m.rows(references, said)
        for m in (call_valid, call_name, call_match)
    }
    assert found["call_valid"].tolist() == [[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [0, 0], [0, 0]]
    assert found["call_name"].tolist() == [[1, 1], [1, 1], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]]
    assert found["call_match"][:, 1].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert call_valid.score(found["call_valid"]) == 0.8
