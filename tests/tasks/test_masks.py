"""What of a row is trained: exactly what the model must say when asked, through its end-of-turn token."""

import base64
import html
import io
import itertools
import re
import wave
from pathlib import Path

import numpy as np
import pytest
from helpers.models import byte_tokenizer
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorakit import tasks
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example
from lorakit.models import reading
from lorakit.tasks import rows
from lorakit.tasks.batches import collate
from lorakit.tasks.preview import Preview
from lorakit.tasks.template import encoded, render

chat, text = tasks.get("chat"), tasks.get("text")

TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
BOS, EOS = 256, 257


def byte_letters():
    """Byte -> the letter that stands for it in a byte-level vocabulary (as in GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {b: chr(b) for b in plain} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)
    }


def bytewise(template=TURNS, special=(), bos="<s>", eos="</s>", pad=None, merges=()):
    """A tokenizer whose ids are byte values: 'a' is 97, 'é' is 195 169. BOS is 256, EOS 257, others follow.

    Each merge is a pair of single letters, with an id after those of the special tokens' places (from 300).
    """
    letters = byte_letters()
    vocabulary = {letter: b for b, letter in letters.items()} | {bos: BOS, eos: EOS}
    pairs = [(letters[ord(a)], letters[ord(b)]) for a, b in merges]
    vocabulary |= {f"<unused{i}>": i for i in range(258, 300)}
    vocabulary |= {a + b: 300 + i for i, (a, b) in enumerate(pairs)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, normalized=False) for t in (bos, eos, *special)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token=eos, pad_token=pad or eos
    )
    made.chat_template = template
    return made


def talk(*words, system=None):
    """Turns of user and assistant by turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def encode(tokenizer, messages, max_length=100_000):
    return chat.encode(Example({"messages": messages}, "f.jsonl", 7), tokenizer, max_length)


def trained(tokenizer, row):
    """The trained stretches of a row as text."""
    marked = zip(row["ids"], row["targets"], strict=True)
    return [
        tokenizer.decode([i for i, _ in group], clean_up_tokenization_spaces=False)
        for on, group in itertools.groupby(marked, key=lambda p: p[1])
        if on
    ]


def letters(row):
    """The row's ids as one string, ▲ for BOS and ▼ for EOS, and its mask as a string of 0 and 1."""
    shown = "".join({BOS: "▲", EOS: "▼"}.get(i, chr(i)) for i in row["ids"])
    return shown, "".join(str(int(t)) for t in row["targets"])


# Literal lists, one character = one id


def test_single_turn_as_lists():
    (row,) = encode(bytewise(), talk("hi", "ok"))
    assert row["ids"] == [256, 117, 58, 104, 105, 10, 97, 58, 111, 107, 257]  # <s>u:hi\na:ok</s>
    assert row["targets"] == [False] * 8 + [True] * 3
    assert {k: v for k, v in row.items() if k not in ("ids", "targets")} == {
        "answer_start": 8,
        "prompt": "hi",
        "reference": "ok",
        "cut": 0,
        "file": "f.jsonl",
        "row": 7,
    }


@pytest.mark.parametrize(
    ("messages", "ids", "mask"),
    [
        (
            talk(
                "hi", "ok", "no", "so"
            ),  # several turns, one row; the newline after an end token is not trained
            "▲u:hi\na:ok▼\nu:no\na:so▼",
            "0000000011100000000111",
        ),
        (talk("hi", "ok", system="be"), "▲s:be\nu:hi\na:ok▼", "0000000000000111"),
        (
            talk("say ok", "ok", "ok?", "ok"),  # the answer's words also stand in the questions
            "▲u:say ok\na:ok▼\nu:ok?\na:ok▼",
            "00000000000011100000000" + "0111",
        ),
        (
            talk(
                "hi", "  ok \n"
            ),  # white space around an answer is part of it where the template keeps it
            "▲u:hi\na:  ok \n▼",
            "00000000" + "1111111",
        ),
        (
            talk("hi", "a:"),  # an answer equal to the words around it
            "▲u:hi\na:a:▼",
            "00000000111",
        ),
        (talk("a:", "u"), "▲u:a:\na:u▼", "0000000011"),
    ],
    ids=["turns", "system", "echo", "spaces", "template word", "template word asked"],
)
def test_literal_masks(messages, ids, mask):
    (row,) = encode(bytewise(), messages)
    assert letters(row) == (ids, mask)


def test_unicode_is_trained_to_the_last_byte():
    (row,) = encode(bytewise(), talk("é?", "né"))
    assert row["ids"] == [256, 117, 58, 195, 169, 63, 10, 97, 58, 110, 195, 169, 257]
    assert row["targets"] == [False] * 9 + [True] * 4
    tokenizer = bytewise()
    (row,) = encode(tokenizer, talk("चाय 🫖?", "हाँ 👩‍🚒, ja"))
    assert trained(tokenizer, row) == ["हाँ 👩‍🚒, ja</s>"]


@pytest.mark.parametrize("answer", ["s", "/s", "</s", "a", ">", "<", "s>"])
def test_an_answer_made_of_the_end_tokens_letters(answer):
    tokenizer = bytewise()
    (row,) = encode(tokenizer, talk("hi", answer))
    assert trained(tokenizer, row) == [answer + "</s>"]


def test_an_end_token_written_inside_an_answer_does_not_end_it():
    (row,) = encode(bytewise(), talk("hi", "x</s>y"))
    assert letters(row) == ("▲u:hi\na:x</s>y▼", "000000001111111")
    assert row["lost"] == ["control"]


def test_padding_and_bos_are_never_targets_though_the_end_token_is():
    # This template ends questions with the token too.
    tokenizer = bytewise(TURNS.replace("{% if m['role'] == 'assistant' %}", "{% if true %}"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    encoded = [*encode(tokenizer, talk("hi", "ok")), *encode(tokenizer, talk("hello", "o"))]
    assert letters(encoded[0]) == ("▲u:hi▼\na:ok▼", "000000000111")
    batch = collate(encoded, [0, 1])
    assert batch.lengths.tolist() == [12, 14] and len(batch.ids) == 26  # nothing between rows
    assert batch.ids[batch.targets].tolist() == [*b"ok", EOS, *b"o", EOS]


def test_generation_is_asked_with_the_prompt_of_the_row():
    tokenizer = bytewise()
    (row,) = encode(tokenizer, talk("hi", "ok", "no", "so"))
    assert chat.prompt_ids(tokenizer, talk("hi", "ok", "no")) == row["ids"][: row["answer_start"]]
    assert (row["prompt"], row["reference"]) == ("no", "so")


def test_the_template_for_a_base_without_one():
    tokenizer = bytewise(reading.PLAIN_TEMPLATE)
    (row,) = encode(tokenizer, talk("hi", "ok", "no", " so", system="Be brief."))
    assert letters(row)[0] == "▲Be brief.\nQuestion: hi\nAnswer: ok▼\nQuestion: no\nAnswer:  so▼"
    assert trained(tokenizer, row) == [" ok</s>", "  so</s>"]


# Stock templates: name -> (end of turn, what the template puts between its question to the model and the
# content of the answer, rows that a conversation of two questions becomes)

CHATML, THINK = "<|im_end|>", "<think>\n\n</think>\n\n"
STOCK = {
    "cohere": ("<|END_OF_TURN_TOKEN|>", "", 1),
    "cohere2": ("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "", 1),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", "\n</think>\n\n", 2),
    "deepseekv3": ("<｜end▁of▁sentence｜>", "\n</think>\n\n", 2),
    "gemma": ("<end_of_turn>", "", 1),
    "gemma3": ("<end_of_turn>", "", 1),
    "gemma4": ("<turn|>", "", 1),
    "gptoss": ("<|return|>", "<|channel|>final<|message|>", 2),
    "lfm2": (CHATML, "", 1),
    "llama3": ("<|eot_id|>", "", 1),
    "llama3_1": ("<|eot_id|>", "", 1),
    "llama3_2": ("<|eot_id|>", "", 1),
    "muse_glimmer": ("<|eot|>", " to=user<|message|>", 1),
    "nemotron_3_nano": (CHATML, "</think>", 2),
    "phi3": ("<|end|>", "", 1),
    "phi3_5": ("<|end|>", "", 1),
    "qwen2_5": (CHATML, "", 1),
    "qwen2_5_vl": (CHATML, "", 1),
    "qwen3": (CHATML, THINK, 2),
    "qwen3_5_nothink": (CHATML, "", 2),  # asks with the empty thought already written
    "qwen3_5_think": (CHATML, "\n</think>\n\n", 2),  # asks with the thought opened
    "qwen3_6": (CHATML, "\n</think>\n\n", 2),
    "qwen3_8": (CHATML, "\n</think>\n\n", 1),
    "qwen3_instruct_2507": (CHATML, "", 1),
    "qwen3_vl": (CHATML, "", 1),
}
# These ask with an opened thought and render answers without: training closes the thought that it is asked with.
ASKS_OTHERWISE = {"deepseek_r1_distill", "deepseekv3", "nemotron_3_nano"}
# name -> (before, after): what TRL's own training template marks beside our stretch of the same turn.
TRL = {
    **dict.fromkeys(("cohere", "cohere2", "llama3"), ("", "")),
    # The newline after the end token, which no model has to say: generation stops before it.
    **dict.fromkeys(
        (
            "gemma",
            "gemma3",
            "lfm2",
            "phi3",
            "phi3_5",
            "qwen2_5_vl",
            "qwen3",
            "qwen3_vl",
            "qwen3_instruct_2507",
        ),
        ("", "\n"),
    ),
    "qwen2_5": ("\n", "\n"),  # also the newline that ends the question to the model
    # Also what the template writes by itself when it asks.
    **dict.fromkeys(("deepseek_r1_distill", "deepseekv3"), ("<｜Assistant｜>", "")),
    "gptoss": ("<|start|>assistant", ""),
    "muse_glimmer": ("<|start|>assistant", ""),
    "nemotron_3_nano": ("<think>", "\n"),
    "qwen3_5_nothink": (THINK, "\n"),
    **dict.fromkeys(("qwen3_5_think", "qwen3_6", "qwen3_8"), ("<think>\n", "\n")),
}
SPECIAL = re.compile(
    r"<[|｜][^<>'\"{}\s]{1,40}[|｜]>|<\|turn>|<turn\|>|</?think>"
    r"|<(?:start_of_turn|end_of_turn|end_of_utterance)>"
)


def template(name):
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    if not (folder / f"{name}.jinja").is_file():
        pytest.skip(f"the installed trl has no template {name}")
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def stock(name, end=None, using=None):
    """A tokenizer with a stock template and the special tokens that it writes."""
    written = template(name)
    special = sorted({*SPECIAL.findall(written), *SPECIAL.findall(end or "")} - {"<|endoftext|>"})
    return bytewise(
        using or written,
        special,
        eos="<|endoftext|>"
        if "phi" in name
        else "<｜end▁of▁sentence｜>"
        if "deepseek" in name
        else "</s>",
    )


CONVERSATIONS = {
    "one": talk("Is the well safe?", "Boil it first."),
    "two": talk("yo man", "yo man", "why yo man\nor not", "yo"),
    "unicode": talk("¿Agua? 水", "Sí: 煮沸 🫗"),
    "words of templates": talk("end", "end", "assistant", "assistant"),
    "more words": talk("model", "think", "im_end", "|>"),
    "white space": talk("  hi \n", "yo\n\n  man", "a\tb", "c\td"),
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", STOCK)
def test_stock_templates_train_the_answers_and_nothing_else(name, conversation):
    end, lead, several = STOCK[name]
    tokenizer, messages = stock(name, end), CONVERSATIONS[conversation]
    encoded = encode(tokenizer, messages)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert [t for row in encoded for t in trained(tokenizer, row)] == [
        lead + a + end for a in answers
    ]
    assert len(encoded) == (1 if len(answers) == 1 else several)
    # The prompt is what the template asks with, and prompt and answer are what it renders.
    history = messages[:-1]
    asked, whole = (render(tokenizer, m, ask) for m, ask in ((history, True), (messages, False)))
    prompt = tokenizer.decode(encoded[-1]["ids"][: encoded[-1]["answer_start"]])
    assert prompt == asked
    if name not in ASKS_OTHERWISE:
        assert whole.startswith(prompt + lead + answers[-1] + end)
    assert chat.prompt_ids(tokenizer, history) == encoded[-1]["ids"][: encoded[-1]["answer_start"]]
    assert tokenizer.decode(chat.stop_ids(encoded, tokenizer)) == (
        end if name != "cohere2" else end[16:]
    )


@pytest.mark.parametrize("name", TRL)
def test_against_generation_marks(name):
    end, _, _ = STOCK[name]
    ours = stock(name, end)
    marks = stock(name, end, using=template(f"{name}_training"))
    messages = CONVERSATIONS["two"]
    made = marks.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    theirs = trained(
        marks, {"ids": made["input_ids"], "targets": list(map(bool, made["assistant_masks"]))}
    )
    mine = [t for row in encode(ours, messages) for t in trained(ours, row)]
    before, after = TRL[name]
    if "deepseek" in name:  # TRL renders no thought, though generation is asked with an open one
        mine = [t.removeprefix(STOCK[name][1]) for t in mine]
    expected = [before + t + after for t in mine]
    if (
        name == "gptoss"
    ):  # as history a turn ends with <|end|>; when asked the model says <|return|>
        expected[0] = expected[0].replace("<|return|>", "<|end|>")
    if name.startswith(
        "phi3"
    ):  # its final eos is marked too, after a newline: the turn has ended before
        expected[-1] += "<|endoftext|>"
    assert theirs == expected


def test_thoughts_belong_to_the_answer_that_follows_them():
    tokenizer = stock("qwen3")
    messages = talk("1+1?", "2", "2+2?", "4")
    messages[1]["reasoning_content"], messages[3]["reasoning_content"] = "easy", "2 and 2"
    assert [trained(tokenizer, row) for row in encode(tokenizer, messages)] == [
        ["<think>\neasy\n</think>\n\n2<|im_end|>"],
        ["<think>\n2 and 2\n</think>\n\n4<|im_end|>"],
    ]
    second = encode(tokenizer, messages)[1]
    assert "easy" not in tokenizer.decode(second["ids"])  # an old thought is dropped, as when asked


def test_special_tokens_that_swallow_the_white_space_after_them():
    """As in Phi-3, where <|end|> takes the newline with it, so that the final end of text follows at once."""
    tokenizer = bytewise(template("phi3"), eos="<|endoftext|>")
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(t, rstrip=True, normalized=False)
                for t in ("<|user|>", "<|assistant|>", "<|end|>")
            ]
        }
    )
    assert len(tokenizer("<|end|>\n<|endoftext|>")["input_ids"]) == 2
    (row,) = encode(tokenizer, talk("hi", "yo", "no", " so"))
    assert trained(tokenizer, row) == ["yo<|end|>", "so<|end|>"]


def test_system_turns_of_stock_templates():
    tokenizer = stock("llama3")
    (row,) = encode(tokenizer, talk("hi", "yo", system="Be brief."))
    assert tokenizer.decode(row["ids"]).startswith(
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe "
    )
    assert trained(tokenizer, row) == ["yo<|eot_id|>"]


# What cannot be trained is refused


def test_a_template_that_raises_rejects_the_row():
    tokenizer = stock("gemma")
    good = Example({"messages": talk("hi", "yo")}, "camp.jsonl", 1)
    bad = Example({"messages": talk("hi", "yo", system="Be brief.")}, "camp.jsonl", 2)
    encoded, rejected, _ = rows.encode({"train": [good, bad]}, chat, tokenizer, 100)
    assert [r["row"] for r in encoded["train"]] == [1]
    assert [(r.where, r.reason) for r in rejected] == [
        ("camp.jsonl:2", "the chat template refuses it: System role not supported")
    ]


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_a_template_for_text_in_parts_is_refused(name):
    with pytest.raises(
        LorakitError, match=r"f\.jsonl:7: .* leaves the words of an answer out .* plain text"
    ):
        encode(stock(name), talk("hi", "yo"))


@pytest.mark.parametrize(
    "written", [TURNS.replace("{{ eos_token }}", ""), TURNS.replace("{{ eos_token }}", "END")]
)
def test_a_template_without_an_end_token_is_refused_with_its_cure(written):
    with pytest.raises(
        LorakitError, match=r"f\.jsonl:7: .* never stop\. Use the instruct version"
    ) as caught:
        encode(bytewise(written), talk("hi", "yo"))
    assert not isinstance(caught.value, BadRow)  # the template's fault, not the row's


def test_rows_are_cut_at_max_length():
    (row,) = encode(bytewise(), talk("hi", "abcdef"), max_length=10)
    assert letters(row) == ("▲u:hi\na:ab", "0000000011") and row["cut"] == 5
    (row,) = encode(bytewise(), talk("hi", "ok", "a long question", "so"), max_length=15)
    assert letters(row) == ("▲u:hi\na:ok▼\nu:a", "000000001110000")
    assert (row["answer_start"], row["prompt"], row["reference"]) == (
        8,
        "hi",
        "ok",
    )  # the answer still there
    with pytest.raises(
        BadRow, match=r"no answer token within max_length=8 \(the row has 15 tokens\)"
    ):
        encode(bytewise(), talk("hi", "abcdef"), max_length=8)


def test_cut_rows_are_counted_and_lost_rows_listed():
    sets = {
        "train": [
            Example({"messages": talk("hi", "ok")}, "f.jsonl", 1),
            Example({"messages": talk("hi", "abcdef")}, "f.jsonl", 2),
        ],
        "test": [
            Example({"messages": talk("hi", "ok")}, "g.jsonl", 1),
            Example({"messages": talk("a long question", "ok")}, "g.jsonl", 2),
        ],
    }
    encoded, rejected, notes = rows.encode(sets, chat, bytewise(), 12)
    assert [len(r) for r in encoded.values()] == [2, 1]
    assert [r.where for r in rejected] == ["g.jsonl:2"] and "max_length=12" in rejected[0].reason
    assert notes == ["train: 1 rows are longer than max_length=12; 3 tokens were cut"]


def test_a_set_without_usable_rows_names_its_own_first_row():
    long = Example({"messages": talk("a long question", "ok")}, "train.jsonl", 1)
    fine = Example({"messages": talk("hi", "ok")}, "train.jsonl", 2)
    lost = Example({"messages": talk("another long question", "ok")}, "test.jsonl", 5)
    with pytest.raises(
        LorakitError, match=r"no test row can be used; the first: test\.jsonl:5: no answer"
    ):
        rows.encode({"train": [long, fine], "test": [lost]}, chat, bytewise(), 12)


def test_guard():
    tokenizer = bytewise()
    row = {"ids": [97, 98, EOS], "targets": [False, True, True], "cut": 0}
    chat.guard([row], tokenizer)
    with pytest.raises(LorakitError, match="no token is trained"):
        chat.guard([row | {"targets": [False] * 3}], tokenizer)
    with pytest.raises(LorakitError, match="no end-of-turn token is trained: max_length cuts"):
        chat.guard([row | {"ids": [97, 98, 99], "cut": 4}], tokenizer)
    with pytest.raises(LorakitError, match="no end-of-turn token is trained: max_length cuts"):
        rows.encode(
            {"train": [Example({"messages": talk("hi", "abcdef")}, "f", 1)]}, chat, tokenizer, 10
        )


# Tokens that join the prompt to the answer


def test_a_merge_over_the_border_leaves_the_prompt_as_it_is_asked():
    tokenizer = bytewise(merges=[(":", "o")])
    text_ids = tokenizer("a:ok", add_special_tokens=False)["input_ids"]
    assert text_ids == [97, 300, 107]  # ":o" is one token
    first, second = encode(tokenizer, talk("hi", "ok", "no", "so"))
    assert letters(first) == ("▲u:hi\na:ok▼", "00000000111")
    # Read again as history the token is joined, so the second answer stands in a row of its own.
    assert second["ids"][6:9] == [97, 300, 107] and trained(tokenizer, second) == ["so</s>"]
    (row,) = encode(tokenizer, talk("o", "ok"))  # inside the prompt it stays joined
    assert row["ids"] == [256, 117, 300, 10, 97, 58, 111, 107, 257]
    assert row["targets"] == [False] * 6 + [True] * 3


def metaspace(scheme, template):
    """A tokenizer like SentencePiece's: '▁' for the space before a word."""
    words = [
        "▁",
        "▁hi",
        "▁ok",
        "▁u",
        "▁a",
        "▁then",
        ":",
        "hi",
        "ok",
        "u",
        "a",
        "then",
        "?",
        "\n",
        ":ok",
    ]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((w, -1.0) for w in words)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.normalizer = normalizers.Sequence([])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = template
    return made


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_words_with_their_space(scheme):
    tokenizer = metaspace(scheme, TURNS.replace("{{ m['content'] }}", " {{ m['content'] }}"))
    (row,) = encode(tokenizer, talk("hi?", "ok then", "ok", "hi"))
    tokens = tokenizer.convert_ids_to_tokens(row["ids"])
    marked = [t for t, on in zip(tokens, row["targets"], strict=True) if on]
    assert marked == ["▁ok", "▁then", "</s>", "▁hi", "</s>"]


def test_a_word_joined_to_the_prompt_where_pieces_cannot_be_apart():
    """Alone, the answer would gain a space that the text has not: the joint token stays, as prompt."""
    tokenizer = metaspace("first", TURNS)
    (row,) = encode(tokenizer, talk("hi", "ok then"))
    tokens = tokenizer.convert_ids_to_tokens(row["ids"])
    assert tokens[-4:] == ["a", ":ok", "▁then", "</s>"] and tokens[0] == "<s>"
    assert row["targets"] == [False] * (len(tokens) - 2) + [True] * 2


# Plain text


def test_every_token_of_a_text_but_the_first_is_trained():
    (row,) = text.encode(Example({"text": "flood"}, "t.jsonl", 3), bytewise(), 100)
    assert letters(row) == ("flood▼", "011111")
    assert (row["file"], row["row"], row["cut"]) == ("t.jsonl", 3, 0)


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (4, ["abcd", "defg", "g▼"]),
        (5, ["abcde", "efg▼"]),
        (7, ["abcdefg", "g▼"]),
        (8, ["abcdefg▼"]),
    ],
)
def test_a_long_text_becomes_rows_that_train_each_token_once(max_length, expected):
    encoded = text.encode(Example({"text": "abcdefg"}, "t", 1), bytewise(), max_length)
    assert [letters(row)[0] for row in encoded] == expected
    assert all(row["targets"] == [False] + [True] * (len(row["ids"]) - 1) for row in encoded)
    assert "".join(letters(row)[0][1:] for row in encoded) == "bcdefg▼"


def test_a_text_without_tokens_is_a_bad_row():
    tokenizer = bytewise()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    with pytest.raises(BadRow, match="no token to train"):
        text.encode(Example({"text": "~~"}, "t", 1), tokenizer, 10)
    with pytest.raises(LorakitError, match="no token is trained"):
        text.guard([{"ids": [1], "targets": [False]}], tokenizer)


# The mask made visible


def preview(question, answer, tokenizer=None):
    tokenizer = tokenizer or bytewise()
    (row,) = encode(tokenizer, talk(question, answer))
    return Preview(row["ids"], row["targets"], tokenizer)


def coloured(shown):
    return [
        html.unescape(t)
        for t in re.findall(r'<span style="background:[^"]*">(.*?)</span>', shown, re.S)
    ]


def test_html_colours_exactly_the_trained_text_and_escapes_it():
    hostile = "<script>alert(1)</script> & \"'</pre></span>"
    shown = preview(hostile, hostile + "!")._repr_html_()
    assert coloured(shown) == [hostile + "!</s>"]
    tags = {t for t in re.findall(r"<(/?\w+)", shown)}
    assert tags == {"pre", "/pre", "span", "/span", "p", "/p", "small", "/small"}
    assert html.unescape(re.sub(r"<[^>]*>", "", shown)).startswith(
        f"<s>u:{hostile}\na:{hostile}!</s>"
    )
    assert shown.endswith("<small>45 of 94 tokens are trained (green)</small></p>")


def test_ansi_colours_exactly_the_trained_text():
    assert str(preview("hi", "né")) == (
        "\x1b[2m<s>u:hi\na:\x1b[0m\x1b[30;42mné</s>\x1b[0m\n[4 of 12 tokens trained]"
    )


def test_control_characters_of_the_data_do_not_reach_the_terminal():
    shown = str(preview("\x1b[2J\x07", "\x9b31mred\r\x00"))
    assert re.findall(r"\x1b\[[\d;]*\w", shown) == ["\x1b[2m", "\x1b[0m", "\x1b[30;42m", "\x1b[0m"]
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x7f-\x9f]", shown)
    assert "u:␛[2J␇\n" in shown and "\ufffd31mred␍␀</s>" in shown


def test_a_row_shows_its_picture_its_sound_and_its_class():
    from lorakit.data import media

    picture = media.packed(Image.new("RGB", (4, 4)), 8)
    shown = Preview([], [], None, {"media": [picture], "reference": "<rust>"})
    assert repr(shown) == "⟦ → <rust>⟧\n[the class trained]"
    assert coloured(shown._repr_html_()) == [" → <rust>"]
    assert (
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"' in shown._repr_html_()
    )
    heard = Preview(
        [], [], None, {"media": [media.packed_sound(np.ones(9))], "targets": []}
    )._repr_html_()
    with wave.open(
        io.BytesIO(base64.b64decode(re.search(r"wav;base64,([^\"]*)", heard)[1]))
    ) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 9)


def test_tokens_that_stand_for_a_picture_are_counted_not_repeated():
    words, tokenizer = "<s>" * 6 + "aaaaaaaa", bytewise()
    ids, row = list(words.encode()), {"media": [b"\x89PNG"], "targets": []}
    assert (
        "&lt;s&gt; × 6 aaaaaaaa</span>"
        in Preview(ids, [False] * len(ids), tokenizer, row)._repr_html_()
    )
    assert html.escape(words) in Preview(ids, [False] * len(ids), tokenizer)._repr_html_()


def test_characters_of_several_tokens_stay_whole():
    tokenizer, written = bytewise(), "a水b🫗c"
    ids = list(written.encode())
    assert Preview(ids, [True] * len(ids), tokenizer).spans == [(written, True)]
    # A border inside a character: it is shown once, whole, with its last byte.
    assert Preview(ids, [False] * 2 + [True] * 9, tokenizer).spans == [
        ("a", False),
        ("水b🫗c", True),
    ]
    assert Preview(ids, [True] * 7 + [False] * 4, tokenizer).spans == [
        ("a水b", True),
        ("🫗c", False),
    ]
    for border in range(1, len(ids)):
        spans = Preview(ids, [i >= border for i in range(len(ids))], tokenizer).spans
        assert "".join(t for t, _ in spans) == written


def test_control_tokens_stay_tokens_after_a_call_that_split_them():
    """A classifier reads its texts so; the tokenizer of a base is one object for all runs of a process."""
    tokenizer = byte_tokenizer()
    plain = encoded(tokenizer, "<|begin|>a<|end|>").ids
    tokenizer("<|end|>", split_special_tokens=True)
    assert encoded(tokenizer, "<|begin|>a<|end|>").ids == plain and len(plain) == 3
