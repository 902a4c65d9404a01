"""No test row has the question of a training row, or resembles one by its own content, in any script."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.common.errors import LorakitError
from lorakit.data import duplicates, minhash, splitting
from lorakit.data.example import Example
from lorakit.data.report import DataReport

SCRIPTS = {  # letters, what stands between words
    "Latin": ("abcdefghijklmnopqrstuvwxyz", " "),
    "Chinese": ("水火山石田土木金日月人口手足目耳米雨雪風花草竹車門馬魚鳥犬牛", ""),
    "Japanese": ("あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ", ""),
    "Thai": ("กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวสหอ", ""),
    "Arabic": ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", " "),
}


def chat(question, answer, row=1, system=None, **more):
    first = [{"role": "system", "content": system}] if system else []
    return Example(
        {
            "messages": [
                *first,
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer, **more},
            ],
            "columns": {},
        },
        "f",
        row,
    )


def sentence(rng, script, words=40):
    letters, between = SCRIPTS[script]
    return [*("".join(rng.choices(letters, k=4)) + between for _ in range(words))]


@pytest.mark.parametrize("script", SCRIPTS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), system=st.booleans())
def test_twins_and_equal_questions_stay_in_one_set(script, seed, system):
    rng = random.Random(seed)
    told = "".join(sentence(rng, script, 150)) if system else None
    rows, kin = [], []
    for family in range(24):
        words = sentence(rng, script)
        question = "".join(words)
        for twin in range(rng.randint(1, 3)):
            if twin == 1:
                question = "".join([*words[:-1], *sentence(rng, script, 1)])  # another last word
            answer = "".join(sentence(rng, script, 3)) if twin == 2 else "".join(words[:3])
            kin.append(family)
            rows.append(chat(question, answer, len(rows), told))
    sets = splitting.split(rows, seed=seed, report=DataReport("f"))
    assert min(map(len, sets.values())) >= 1
    homes = {}
    for name, some in sets.items():
        for example in some:
            assert homes.setdefault(kin[example.row], name) == name
    assert sum(map(len, sets.values())) == len(set(map(duplicates.fingerprint, rows)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_limit_is_exact(script):
    """Pairs at every index from 0.7 to 0.9: linked from 0.8 on, and below not, whatever the estimate says."""
    rng, indices = random.Random(script), []
    for changed in [*range(4, 20)] * 6:
        words = sentence(rng, script, 100)
        other = [*words[: 100 - changed], *sentence(rng, script, changed)]
        one, two = ("".join(some).strip() for some in (words, other))
        numbers = minhash.Grams()
        grams = [{*numbers.of(text).tolist()} for text in (one, two)]
        index = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        indices.append(index)
        assert bool(minhash.pairs([one, two], 0.8)) == (index >= 0.8), index
    assert sum(0.76 < index < 0.84 for index in indices) > 15


def test_a_last_exchange_that_many_share_says_little():
    rng = random.Random(2)
    bye = [
        {"role": "user", "content": "Thanks a lot!"},
        {"role": "assistant", "content": "You're welcome! Let me know if you need anything else."},
    ]
    rows = []
    for i in range(60):
        row = chat("".join(sentence(rng, "Latin", 12)), "".join(sentence(rng, "Latin", 12)), i)
        row.fields["messages"] += bye
        rows.append(row)
    report = DataReport("f")
    splitting.split(rows, report=report)
    assert report.sets == {"train": 48, "validation": 6, "test": 6} and not report.near_duplicates


@pytest.mark.parametrize(
    ("one", "two"), [("How far is it", "How far is it?"), ("多远？", "多远"), ("Go! ", "go")]
)
def test_a_question_is_the_same_with_or_without_its_sign(one, two):
    assert duplicates.prompt_key(chat(one, "a")) == duplicates.prompt_key(chat(two, "b"))
    assert duplicates.prompt_key(chat("2+2", "4")) != duplicates.prompt_key(chat("2-2", "0"))


@pytest.mark.parametrize("where", ["system", "instruction"])
def test_text_that_all_rows_share_tells_nothing(where):
    rng = random.Random(1)
    shared = "".join(sentence(rng, "Latin", 200))
    rows = [
        chat(f"How many tents has camp {i}?", f"{i * 3}", i, system=shared)
        if where == "system"
        else chat(f"{shared}\n\nHow many tents has camp {i}?", f"{i * 3}", i)
        for i in range(100)
    ]
    report = DataReport("f")
    sets = splitting.split(rows, report=report)
    assert report.sets == {"train": 80, "validation": 10, "test": 10} and not report.near_duplicates
    given = splitting.split(rows[:80], given={"test": rows[80:]}, report=DataReport("f"))
    assert len(given["test"]) == 20 and len(given["train"]) == 72
    assert len(sets["train"]) == 80


def test_equal_means_equal_to_the_character():
    rows = [
        chat("Write the name.", "iPhone", 1),
        chat("Write the name.", "IPHONE", 2),
        chat("Write the name.", "i Phone", 3),
        chat("Write the name.", "iPhone", 4, reasoning_content="As Apple does."),
        chat("Write the name.", "iPhone", 5),
        *(chat(f"Question {i}?", f"{i}", 10 + i) for i in range(8)),
    ]
    report = DataReport("f")
    splitting.split(rows, report=report)
    assert [(r.row, r.reason) for r in report.rejected] == [(5, "repeats f:1")]


def test_the_search_can_be_turned_off_and_set():
    words = [f"word{i}" for i in range(40)]
    rows = [chat(" ".join([*words[:38], f"x{i}", f"y{i}"]), "yes", i) for i in range(10)]
    report = DataReport("f")
    with pytest.raises(LorakitError, match="10 rows in 1 groups leave no test row"):
        splitting.split(rows, report=DataReport("f"), near=0.8)
    assert report.near_duplicates == 0
    splitting.split(rows, report=report, near=None)
    assert report.sets == {"train": 8, "validation": 1, "test": 1}
    assert "near duplicates were not searched for (near_duplicates: off)" in report.notes


def test_a_prompt_of_nearly_all_rows_tells_nothing():
    rows = [chat("Write a poem.", f"poem number {i} of {i * 7}", i) for i in range(30)]
    report = DataReport("f")
    splitting.split(rows, report=report)
    assert report.sets == {"train": 24, "validation": 3, "test": 3}


def test_contradictory_labels_are_a_finding():
    from lorakit.data.quality.classes import Check

    check = Check(None, 99)
    for row, (text, label) in enumerate(
        [("no water", "need"), ("all well", "none"), ("No  water", "none")], 1
    ):
        check.see(Example({**chat(text, label).fields, "label": label}, "f", row), "train")
    (found,) = [f for f in check.findings() if "another label" in f.text]
    assert (found.level, found.count, found.rows) == ("warning", 1, ["f:3: 'none', f:1: 'need'"])
