"""The form of answers is found in closed sets, lines and JSON, and in free text there is none."""

import json
import random
import re

import numpy as np
import pytest

from lorakit.results.evidence import form as measured
from lorakit.results.form import Form, Slot, acceptor, infer

PLACES = ["Gonrova", "Nirsa", "Konrova", "Dirquay", "Tallau", "Zirford"]
LINES = [
    f"desk: {('food', 'first aid', 'radio')[i % 3]} | road: {('open', 'closed')[i % 2]} | place: {PLACES[i % 6]}{i}"
    for i in range(60)
]


def test_a_fixed_line_has_closed_and_open_slots():
    form = infer(LINES)
    assert str(form) == "desk: (first aid, food, radio) | road: (closed, open) | place: (text)"
    assert all(map(form.fits, LINES))
    assert form.fits(" desk: food | road: open | place: Elsewhere\n")
    for wrong in ("desk: zoo | road: open | place: X", "desk: food | road: open", "food", None, ""):
        assert not form.fits(wrong)
    assert form.begins("") and form.begins("desk: fo") and form.begins("desk: food | road: open")
    assert not form.begins("desk: zo") and not form.begins("road")


def test_json_objects_with_the_same_keys_have_a_form():
    answers = [
        json.dumps({"place": f"{p}{i}", "n": i, "ok": i % 2 > 0}) for i, p in enumerate(PLACES * 5)
    ]
    form = infer(answers)
    made = '{"place": "Over the hill", "n": 12, "ok": true}'
    assert form.fits(made) and json.loads(made)
    assert not form.fits('{"place": "a", "n": many, "ok": true}') and not form.fits(made[:-1])


def test_few_answers_that_come_again_are_a_closed_set():
    assert infer(["yes", "no"] * 10) == Form([Slot("choice", ["no", "yes"])])
    assert infer(["yes", "no"] * 9) is None  # fewer than 20


def test_free_text_has_no_form():
    words, rng = (
        "the a cat dog went over river and rains well thanks some like to eat".split(),
        random.Random(0),
    )
    assert (
        infer([" ".join(rng.choices(words, k=rng.randint(5, 15))) + "." for _ in range(60)]) is None
    )
    assert infer(["", *["x"] * 40]) is None


def test_the_grammar_names_every_part():
    assert infer(LINES).gbnf().splitlines() == [
        'root ::= "desk: " slot1 " | road: " slot3 " | place: " slot5',
        'slot1 ::= "first aid" | "food" | "radio"',
        'slot3 ::= "closed" | "open"',
        "slot5 ::= [^\\n]{1,18}",
    ]
    assert Form.of(json.loads(json.dumps(infer(LINES).plain()))).pattern() == infer(LINES).pattern()


class Letters:
    """A tokenizer whose tokens are characters; 0 ends an answer, 1 is another special token."""

    all_special_ids = (0, 1)

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids if i > 1)


class Bytes(Letters):
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens):
        return bytes(i for i in ids if i > 1).decode(errors="replace")


@pytest.mark.parametrize(
    ("parts", "said", "accepted"),
    [
        (["I say: ", Slot("choice", ["aye", "nay"])], b"I ", True),
        (["I say: ", Slot("choice", ["aye", "nay"])], b"I \xc3", False),
        (["I say: ", Slot("choice", ["\u4f60\u597d", "nay"])], b"I say: \xe4\xbd", True),
        (["I say: ", Slot("text", (), "", 9)], b"I say: caf\xc3", True),
        (["I say: ", Slot("text", (), "", 9)], b"I say: caf\xc3\xa9", True),
        (["I say: ", Slot("text", (), "", 9)], b"I say: \xc3a", False),
        ([Slot("choice", ["\u00e9t\u00e9", "nay"])], b"\xc3", True),
        (["I say: ", Slot("text", (), "", 9)], b"I say: \x01", False),
    ],
)
def test_a_character_in_several_tokens_is_held_to_the_form(parts, said, accepted):
    assert acceptor(Form(parts), Bytes(), [0])(list(said)) is accepted


def test_an_answer_held_to_its_form_takes_the_most_probable_token_that_fits():
    torch = pytest.importorskip("torch")
    from lorakit.models.constrained import Accepted

    accepts = acceptor(infer(["yes", "no"] * 10), Letters(), [0])
    scores = torch.zeros(2, 128)
    scores[:, ord("q")], scores[:, 1], scores[:, ord("n")], scores[:, 0] = 9.0, 8.0, 7.0, 6.0
    processor, said = Accepted(accepts, 2, [0]), [[7, 7], [7, 7]]
    for _ in range(4):
        chosen = processor(torch.tensor(said), scores).argmax(-1).tolist()
        said = [[*row, token] for row, token in zip(said, chosen, strict=True)]
    assert ["".join(map(chr, row[2:4])) for row in said] == ["no", "no"]
    assert [row[4:] for row in said] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("rows", [10, 60])
def test_what_is_said_has_intervals_or_names_the_rows_it_takes(rows):
    entry = {"difference": 0.0, "interval": [-0.01, 0.02]}
    valid = {"before": 0, "after": rows - 1, "held to it": rows}
    said = measured.said(infer(LINES), valid, rows, "exact_match", entry)
    if rows == 10:
        assert not said.told and said.headline.endswith("too few; at least 30 are needed.")
        return
    assert said.headline.startswith("59 of 60 (98 %, 95 % interval 91 to 100 %)")
    assert re.search(r"Before training: 0 of 60 .*; held to the form: 60 of 60", said.sentences[1])
    assert np.isfinite(entry["interval"]).all() and "95 % interval" in said.sentences[2]
