"""What stock templates do to reasoning, a system turn and indented code: trained, or named as lost."""

from pathlib import Path

import pytest
from helpers.models import byte_tokenizer

from lorakit.data.example import Example
from lorakit.data.quality import LOST
from lorakit.tasks import chat
from lorakit.tasks.template import render, thought_of

NAMES = (
    "cohere cohere2 deepseek_r1_distill deepseekv3 gemma gemma3 gemma4 gptoss lfm2 llama3 llama3_1 llama3_2 muse_glimmer "
    "nemotron_3_nano phi3 phi3_5 qwen2_5 qwen2_5_vl qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 "
    "qwen3_instruct_2507 qwen3_vl"
).split()
QUESTION = {"role": "user", "content": "Is 7 prime?"}
CASES = {
    "reasoning field": [
        QUESTION,
        {"role": "assistant", "content": "Yes.", "reasoning_content": "No divisor."},
    ],
    "inline reasoning": [
        QUESTION,
        {"role": "assistant", "content": "<think>\nNo divisor.\n</think>\n\nYes."},
    ],
    "system turn": [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": "Yes."},
    ],
    "indented code": [QUESTION, {"role": "assistant", "content": "    return True\n"}],
    "two turns": [
        QUESTION,
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And 8?"},
        {"role": "assistant", "content": "No, it is even."},
    ],
}


@pytest.fixture(params=NAMES)
def tokenizer(request):
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    file = folder / f"{request.param}.jinja"
    if not file.is_file():
        pytest.skip(f"the installed trl has no template {request.param}")
    found = byte_tokenizer()
    marks = [
        "<｜end▁of▁sentence｜>",
        "<|im_end|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<|END_OF_TURN_TOKEN|>",
    ]
    marks += ["<|END_RESPONSE|>", "<turn|>", "<|return|>", "<|eot|>", "<|eom|>"]
    found.add_special_tokens(
        {"additional_special_tokens": marks}, replace_extra_special_tokens=False
    )
    found.chat_template = file.read_text(encoding="utf-8")
    return found


@pytest.mark.parametrize("reasoning", ["auto", "keep", "drop"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_trained_or_named(tokenizer, case, reasoning):
    messages = CASES[case]
    try:
        rows = chat.encode(Example({"messages": messages}, "f", 1), tokenizer, 10_000, reasoning)
    except chat.BadRow as error:
        assert case == "system turn" and "the chat template refuses it" in str(error)
        return
    lost = {key for row in rows for key in row.get("lost", ())}
    assert lost <= LOST.keys()
    targets = "".join(
        tokenizer.decode([i for i, on in zip(row["ids"], row["targets"], strict=True) if on])
        for row in rows
    )
    for turn in messages:
        if turn["role"] == "assistant":
            thought, words = thought_of(turn)
            assert words.strip() in targets
            assert words.rstrip() in targets or "indentation" in lost
            kept = thought in targets or "reasoning" in lost
            assert kept if reasoning != "drop" else not thought or thought not in targets
        elif turn["role"] == "system":
            assert "system" in lost or turn["content"] in tokenizer.decode(rows[0]["ids"])
    # The prompt is the one that generation uses.
    last = rows[-1]
    asked = render(tokenizer, messages[:-1], True)
    assert tokenizer.decode(last["ids"][: last["answer_start"]]) == asked
    assert chat.prompt_ids(tokenizer, messages[:-1]) == last["ids"][: last["answer_start"]]


def test_control_tokens_in_the_words_are_text():
    tokenizer = byte_tokenizer()
    messages = [
        {"role": "user", "content": "What is <|end|>?\n<|assistant|>"},
        {"role": "assistant", "content": "It closes <|end|> a turn."},
    ]
    (row,) = chat.encode(Example({"messages": messages}, "f", 1), tokenizer, 999)
    assert row["ids"].count(tokenizer.eos_token_id) == 2  # the template's own, behind each turn
    assert tokenizer.decode(row["ids"]) == (
        "<|user|>What is <|end|>?\n<|assistant|><|end|><|assistant|>It closes <|end|> a turn.<|end|>"
    )
    assert row["lost"] == ["control"]


def test_an_answer_of_weight_nothing_is_not_trained_and_others_are_scaled():
    tokenizer = byte_tokenizer()
    messages = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "BAD", "weight": 0.0},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "ok", "weight": 2.0},
    ]
    (row,) = chat.encode(Example({"messages": messages}, "f", 1), tokenizer, 999)
    on = [i for i, t in zip(row["ids"], row["targets"], strict=True) if t]
    assert tokenizer.decode(on) == "ok<|end|>"
    assert [w for w, t in zip(row["weights"], row["targets"], strict=True) if t] == [2.0] * 3
    assert (row["prompt"], row["reference"]) == ("b?", "ok")
