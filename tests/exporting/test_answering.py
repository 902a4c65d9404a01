"""What a served answer says beside OpenAI's fields, and how it is held to a form."""

import asyncio
import json

import pytest
import torch

from lorakit.results import evidence
from lorakit.results.ask import ask_surely
from lorakit.results.evidence import Evidence
from lorakit.results.form import Form, Slot

pytest.importorskip("fastapi")
QUESTION = "abcde efgha bcdef ghabc?"
FORM = Form(["I say: ", Slot("choice", ["aye", "nay"])])


def keep(folder, name, **figures):
    known = Evidence(name, "", True, figures=figures, weights=evidence.weights(folder))
    evidence.keep(folder, known)


@pytest.fixture
def tuned(copied, base):
    """(model with the adapter merged, tokenizer) as plain PEFT loads them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = str(copied / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    model = PeftModel.from_pretrained(plain, adapter).merge_and_unload().eval()
    return model, AutoTokenizer.from_pretrained(adapter)


def answer(folder, tuned, *, held=False, stream=False, tools=None, manager=None, **request):
    """The completion that a server gives to one question."""
    from transformers.cli.serving.utils import GenerateManager, GenerationState

    from lorakit.exporting.answering import Answering

    model, tokenizer = tuned
    handler = Answering.of(folder.path, held=held)(None, GenerationState())
    asked = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    settings = handler._build_generation_config(
        {"max_tokens": 8, **request}, model.generation_config
    )
    given = ("1", model, tokenizer, "m", dict(inputs), settings, manager or GenerateManager())

    async def streamed():
        response = handler._streaming(*given, tools=tools)
        return [json.loads(piece[6:]) async for piece in response.body_iterator]

    if stream:
        (piece,) = asyncio.run(streamed())
        return piece
    return json.loads(bytes(asyncio.run(handler._non_streaming(*given, tools=tools)).body))


@pytest.mark.parametrize(("threshold", "person"), [(-1e9, False), (0.0, True)])
def test_an_answer_says_whether_to_ask_a_person(copied, tuned, threshold, person):
    keep(copied, "trust", always=False, threshold=threshold)
    (expected,) = ask_surely(copied.path, [QUESTION])
    said = answer(copied, tuned)
    assert said["choices"][0]["message"]["content"] == expected.text
    assert said["lorakit"]["ask_a_person"] is person is not expected.sure
    assert said["lorakit"]["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)


@pytest.mark.parametrize("request_", [{"temperature": 1.0}, {"max_tokens": 1}])
def test_what_was_sampled_or_cut_goes_to_a_person(copied, tuned, request_):
    keep(copied, "trust", always=True, threshold=None)
    tuned[0].generation_config.do_sample = True
    assert answer(copied, tuned)["lorakit"]["ask_a_person"] is False
    assert answer(copied, tuned, **request_)["lorakit"]["ask_a_person"] is True


def test_a_streamed_answer_comes_in_one_piece_with_the_same_words(copied, tuned):
    keep(copied, "trust", always=True, threshold=None)
    whole, piece = answer(copied, tuned), answer(copied, tuned, stream=True)
    assert piece["choices"][0]["delta"]["content"] == whole["choices"][0]["message"]["content"]
    assert piece["choices"][0]["finish_reason"] == "stop" and piece["lorakit"] == whole["lorakit"]


SAID = 'Look. <|python_tag|>{"name": "rain", "parameters": {"at": "Rio"}}'
RAIN = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("offered", ["rain", "wind", ""])
def test_calls_of_offered_tools_are_no_words(copied, tuned, monkeypatch, stream, offered):
    from transformers.cli.serving.utils import GenerateManager

    async def said(*args, **options):
        return SAID, 5, torch.tensor([7, 8])

    monkeypatch.setattr(GenerateManager, "generate_non_streaming", said)
    keep(copied, "trust", always=True, threshold=None)
    tools = [{**RAIN, "function": {**RAIN["function"], "name": offered}}] if offered else None
    (choice,) = answer(copied, tuned, stream=stream, tools=tools)["choices"]
    message = choice["delta" if stream else "message"]
    if offered != "rain":
        assert message["content"] == SAID and choice["finish_reason"] == "stop"
        assert not message.get("tool_calls")
        return
    (call,) = message["tool_calls"]
    assert message["content"] == "Look." and choice["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "rain", "arguments": '{"at": "Rio"}'}
    assert call["type"] == "function" and call["id"] == "1_tool_call_0"


def test_a_streamed_call_is_read_without_a_threshold_too(copied, tuned, monkeypatch):
    from transformers.cli.serving.utils import GenerateManager

    async def said(*args, **options):
        return SAID, 5, torch.tensor([7, 8])

    monkeypatch.setattr(GenerateManager, "generate_non_streaming", said)
    piece = answer(copied, tuned, stream=True, tools=[RAIN])
    assert piece["choices"][0]["delta"]["tool_calls"][0]["index"] == 0 and "lorakit" not in piece


def test_answers_are_held_to_the_form(copied, tuned):
    keep(copied, "form", form=FORM.plain())
    free = answer(copied, tuned)
    assert "lorakit" not in free and not FORM.fits(free["choices"][0]["message"]["content"])
    held = answer(copied, tuned, held=True, max_tokens=16)
    assert FORM.fits(held["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_with_the_window_of_the_model(copied, tuned, monkeypatch, stream):
    from fastapi import HTTPException
    from transformers.cli.serving import utils

    from lorakit.exporting.limited_server import fitting

    def manager(window):
        """The one that a server takes, as `limited_server` changes it."""
        with monkeypatch.context() as patch:
            patch.setattr(utils, "GenerateManager", fitting(utils.GenerateManager, window))
            return utils.GenerationState().get_manager("m", use_cb=False)

    asked = [{"role": "user", "content": QUESTION}]
    encoded = tuned[1].apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    length = len(encoded["input_ids"])
    said = answer(copied, tuned, manager=manager(length + 3), max_tokens=8)
    assert (
        said["usage"]["completion_tokens"] == 3 and said["choices"][0]["finish_reason"] == "length"
    )
    with pytest.raises(HTTPException, match=f"the prompt has {length} tokens"):
        answer(copied, tuned, manager=manager(length), stream=stream)
