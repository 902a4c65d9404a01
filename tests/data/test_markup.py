"""Text that a template has been applied to already becomes the turns that it was made of."""

import json

import pytest

from lorakit.data import loading, markup

WRITTEN = {
    "chatml": "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nSafe?<|im_end|>\n"
    "<|im_start|>assistant\nBoil it.<|im_end|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBrief.\n<</SYS>>\n\nSafe? [/INST] Boil it. </s>",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBrief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSafe?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nBoil it.<|eot_id|>",
    "gemma": "<bos><start_of_turn>user\nSafe?<end_of_turn>\n<start_of_turn>model\nBoil it.<end_of_turn>\n",
    "phi": "<|system|>\nBrief.<|end|>\n<|user|>\nSafe?<|end|>\n<|assistant|>\nBoil it.<|end|>\n",
    "alpaca": "Below is an instruction that describes a task.\n\n### Instruction:\nSafe?\n\n### Response:\nBoil it.",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_turns_of_the_common_formats(name):
    system = [("system", "Brief.")] if "Brief." in WRITTEN[name] else []
    found = markup.turns_of(WRITTEN[name])
    assert [(t["role"], t["content"]) for t in found] == [
        *system,
        ("user", "Safe?"),
        ("assistant", "Boil it."),
    ]


def test_several_turns():
    text = "<s>[INST] a? [/INST] b </s><s>[INST] c? [/INST] d </s>"
    assert [t["content"] for t in markup.turns_of(text)] == ["a?", "b", "c?", "d"]


@pytest.mark.parametrize(
    "text", ["The river rose.", "a [INST] b", "see ### Response: below", "<|im_start|>"]
)
def test_other_text_is_left_alone(text):
    assert markup.turns_of(text) is None


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_such_text_is_a_file_of_conversations(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": WRITTEN[name]}) + "\n" for _ in range(3)))
    examples, report = loading.load(str(path))
    assert report.schema == "templated"
    assert examples[0].fields["messages"][-1] == {"role": "assistant", "content": "Boil it."}
    assert loading.load(str(path), gives="text")[1].schema == "text"  # as it is, for the text task


def test_a_templated_prompt_and_its_completion(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "<s>[INST] How many? [/INST]", "completion": " It has 3. </s>"}
    path.write_text(json.dumps(row) + "\n")
    examples, _ = loading.load(str(path))
    assert examples[0].fields["messages"] == [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "It has 3."},
    ]


def test_plain_text_has_one_beginning_and_one_end():
    from helpers.models import byte_tokenizer

    from lorakit.data.example import Example
    from lorakit.tasks import text

    tokenizer = byte_tokenizer()
    (row,) = text.encode(Example({"text": "ab<|end|> \n"}, "f", 1), tokenizer, 99)
    assert tokenizer.decode(row["ids"]) == "ab<|end|>"
