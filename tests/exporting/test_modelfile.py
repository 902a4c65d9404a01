"""Ollama's Modelfile writes every conversation as the chat template does; the emulation of its renderer is tested too."""

import pytest

from lorakit.common.errors import LorakitError
from lorakit.exporting.modelfile import conversations, modelfile, ollama_template, rendered
from lorakit.exporting.ollama import collate, parse, render
from lorakit.models import base_model, reading

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
BRACES = CHATML.replace("<|im_end|>", "<{{ '{{' }}end>")
FORGETFUL = (  # earlier answers are cut, which no template of Ollama's can
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if loop.last else m['content'][:4] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "lorakit": None,
    "plain words": reading.PLAIN_TEMPLATE,
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "llama 3": LLAMA_3,
    "no system": GEMMA,
    "braces": BRACES,
}


@pytest.fixture
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model.path("tiny"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_writes_one_to_three_questions_alike(tokenizer, name):
    if TEMPLATES[name]:
        tokenizer.chat_template = TEMPLATES[name].replace("{{ bos_token }}", "")
    template = ollama_template(tokenizer, ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"])
    asked = conversations(tokenizer)
    assert len(asked) == (3 if name == "no system" else 6)
    for messages in asked:
        assert render(template, messages) == rendered(tokenizer, messages)


def test_a_default_system_turn_is_written_once(tokenizer):
    tokenizer.chat_template = DEFAULT_SYSTEM
    messages = conversations(tokenizer)[2]
    written = render(ollama_template(tokenizer, ["<|im_end|>"]), messages)
    assert written.count("You are helpful.") == 1 and written.count("<|im_end|>\n") == 6


def test_what_no_template_can_write_is_said_and_no_file_is_made(tokenizer):
    tokenizer.chat_template = FORGETFUL
    text, (note,) = modelfile(tokenizer, [1], name="run", weights="model.gguf", chats=True)
    assert not text
    assert note.startswith("no Modelfile was written: the chat template")


def test_the_old_form_with_prompt_and_response_loses_the_end_of_earlier_answers(tokenizer):
    """What Ollama makes of `{{ .Prompt }}…{{ .Response }}`: the reason why `.Messages` is used."""
    legacy = "<|user|>\n{{ .Prompt }}<|end|>\n<|assistant|>\n{{ .Response }}"
    messages = [
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    assert render(legacy, messages) == (
        "<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|user|>\nQ2<|end|>\n<|assistant|>\n"
    )


# The emulation


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[1:]} for turn in turns]


def test_neighbours_of_one_role_are_joined_and_system_texts_too():
    system, merged = collate(said("sone", "stwo", "ua", "ub", "ac"))
    assert system == "one\n\ntwo"
    assert [m["content"] for m in merged] == ["one\n\ntwo", "a\n\nb", "c"]


@pytest.mark.parametrize(
    "template, expected",
    [
        ("{{ range .Messages }}[{{ .Role }}:{{ .Content }}]{{ end }}", "[system:S][user:Q][assistant:A][user:R]"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ end }}", "0S1Q2A3R"),
        ('{{ range .Messages }}{{ if eq .Role "user" }}u{{ else if eq .Role "system" }}s{{ else }}a{{ end }}{{ end }}', "suau"),
        ("a  {{- range .Messages }} {{ .Content -}}  \n {{ end }} b", "a S Q A R b"),
        ("{{ if .System }}{{ .System }}{{ else }}none{{ end }}{{ len .Messages }}{{ .Messages | x }}", None),
        ('{{ if and .System (not .Nothing) }}yes{{ end }}{{ $x := "v" }}{{ $x }}{{ len .Messages }}', "yesv4"),
        ("{{ with .System }}<{{ . }}>{{ end }}{{/* said */}}{{ range slice .Messages 2 }}{{ .Content }}{{ end }}", "<S>AR"),
        ('{{ range .Messages }}{{ end }}{{ "{{" }}{{ `\\n` }}{{ "\\n" }}', "{{\\n\n"),
        ("{{ $last := index .Messages 3 }}{{ $last.Content }}{{ $.System }}", "RS"),
    ],
)  # fmt: skip
def test_templates_are_written_as_go_does(template, expected):
    conversation = said("sS", "uQ", "aA", "uR")
    if expected is None:
        with pytest.raises(LorakitError, match="the emulation of Ollama's templates has no"):
            render(template, conversation)
    else:
        assert render(template, conversation) == expected


def test_the_old_form_is_cut_at_the_response():
    template = "{{ if .System }}<{{ .System }}>{{ end }}{{ .Prompt }}={{ .Response }};"
    assert render(template, said("sS", "uQ", "aA", "uR")) == "<S>Q=A;R="
    assert render("{{ .Prompt }}>", said("uQ", "aA", "uR")) == "Q>AR>"


@pytest.mark.parametrize("template", ["{{ if .System }}x", "x{{ end }}", "{{ range .Messages }}"])
def test_blocks_that_do_not_close_are_refused(template):
    with pytest.raises(LorakitError, match="a block"):
        parse(template)
