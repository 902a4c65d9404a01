"""From a file to three sets: nothing vanishes, and no row of one set is in another."""

import json
import random
import time
from collections import Counter

import pytest
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.common.errors import LorakitError
from lorakit.data import duplicates, loading, sources, splitting
from lorakit.data import minhash as near
from lorakit.data.example import Example
from lorakit.data.report import DataReport

WORDS = [
    "river",
    "camp",
    "water",
    "well",
    "tap",
    "bridge",
    "road",
    "truck",
    "tent",
    "clinic",
    "rice",
]

LOST_PROMPT = "column 'prompt' (or question, query, problem, input) is missing"
LOST_ANSWER = "column 'completion' (or response, solution, output, answer) is missing"


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def pairs(n, name="p"):
    return [
        {"prompt": f"{name} question {i}", "completion": f"{name} answer {i}"} for i in range(n)
    ]


def asked(examples):
    return [e.fields["messages"][0]["content"] for e in examples]


def answered(examples):
    return [e.fields["messages"][-1]["content"] for e in examples]


def qa(question, answer="yes", row=1, file="f", **columns):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Example({"messages": turns, "columns": columns}, file, row)


def sentence(rng, n=30):
    return " ".join(rng.choice(WORDS) for _ in range(n))


# Loading


def test_every_row_is_used_or_named(tmp_path):
    path = write(
        tmp_path,
        [
            {"prompt": "p", "completion": "c"},
            "{broken",
            {"prompt": "", "completion": "c"},
            '"words"',
            {"prompt": "p"},
            {"prompt": "q", "completion": "d"},
        ],
    )
    examples, report = loading.load(path)
    assert [(e.where, e.fields["messages"][0]["content"]) for e in examples] == [
        ("rows.jsonl:1", "p"),
        ("rows.jsonl:6", "q"),
    ]
    assert {r.where: r.reason.split(":")[0] for r in report.rejected} == {
        "rows.jsonl:2": "broken JSON",
        "rows.jsonl:3": "'prompt' is empty",
        "rows.jsonl:4": "expected an object {…}, found str",
        "rows.jsonl:5": LOST_ANSWER,
    }
    assert report.rows == len(examples) + len(report.rejected) == 6
    assert report.lines()[:2] == [
        f"{path}: 6 rows, jsonl; schema prompt_completion, because the rows have 'prompt' and 'completion'",
        "4 left out, the first: rows.jsonl:2: broken JSON: Expecting property name enclosed in double quotes "
        "(column 2)",
    ]


rows_of_any_kind = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"prompt": st.text(max_size=5), "completion": st.none() | st.text(max_size=5)}
        ),
        st.integers(),
        st.sampled_from(["{", "[]", "", "  "]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rows_of_any_kind)
def test_nothing_vanishes(tmp_path_factory, rows):
    lines = [*rows, {"prompt": "p", "completion": "c"}]
    present = [i for i, r in enumerate(lines, 1) if not isinstance(r, str) or r.strip()]
    examples, report = loading.load(write(tmp_path_factory.getbasetemp(), lines))
    assert sorted([e.row for e in examples] + [r.row for r in report.rejected]) == present
    assert report.rows == len(present)


@pytest.mark.parametrize(
    ("row", "schema", "because"),
    [
        ({"instruction": "i", "input": "x", "output": "o"}, "alpaca", "'instruction' and 'output'"),
        ({"question": "q", "answer": "a", "id": 1}, "prompt_completion", "'question' and 'answer'"),
        ({"messages": qa("u", "a").fields["messages"]}, "messages", "'messages'"),
        ({"text": "t", "id": 1}, "text", "'text'"),
        (
            {"text": "Q: p A: r", "prompt": "p", "response": "r"},
            "prompt_completion",
            "'prompt' and 'response', which say more than 'text' (`columns` decides otherwise)",
        ),
    ],
)
def test_schemas_are_found_with_a_reason(row, schema, because, tmp_path):
    _, report = loading.load(write(tmp_path, [row]))
    assert (report.schema, report.reason) == (
        schema,
        f"schema {schema}, because the rows have {because}",
    )


def test_a_task_restricts_the_schemas(tmp_path):
    path = write(tmp_path, [{"text": "t", "prompt": "p", "response": "r"}])
    assert loading.load(path, gives="text")[1].schema == "text"
    with pytest.raises(
        LorakitError, match=r"columns prompt fit no schema \(text: text\)\. Name them"
    ):
        loading.load(write(tmp_path, [{"prompt": "p"}]), gives="text")


def test_the_schema_of_most_rows_counts(tmp_path):
    path = write(tmp_path, [{"text": "t"}, *pairs(3)])
    examples, report = loading.load(path)
    assert report.schema == "prompt_completion" and len(examples) == 3
    assert [(r.row, r.reason) for r in report.rejected] == [(1, LOST_PROMPT)]


def test_columns_rename(tmp_path):
    rows = [
        {"body": "b", "genre": "g", "prompt": "not this"},
        {"genre": "h", "prompt": "nor this"},
        {"body": "c", "genre": "h"},
    ]
    path = write(tmp_path, rows)
    examples, report = loading.load(path, columns={"prompt": "body", "answer": "genre"})
    assert [(e.row, *asked([e]), *answered([e])) for e in examples] == [
        (1, "b", "g"),
        (3, "c", "h"),
    ]
    assert [(r.where, r.reason) for r in report.rejected] == [("rows.jsonl:2", LOST_PROMPT)]
    with pytest.raises(
        LorakitError, match=r"columns names 'boddy', which no row has; did you mean 'body'\?"
    ):
        loading.load(path, columns={"prompt": "boddy"})


def test_columns_can_be_swapped(tmp_path):
    path = write(tmp_path, [{"prompt": "a", "completion": "q"}])
    swapped, _ = loading.load(path, columns={"prompt": "completion", "completion": "prompt"})
    assert (asked(swapped), answered(swapped)) == (["q"], ["a"])


def test_files_that_cannot_be_used(tmp_path):
    for name, content, words in (
        ("a.jsonl", "\n\n", "no usable row"),
        ("b.jsonl", "{\n[", r"no usable row; the first: b\.jsonl:1: broken JSON"),
        ("c.jsonl", '{"text": ""}', r"no usable row; the first: c\.jsonl:1: 'text' is empty"),
        ("d.jsonl", '{"words": 1}', "the columns words fit no schema .*Write rows with a prompt"),
        ("e.docx", "", r"no format reads '\.docx'; known endings: .*\.json.*\.jsonl"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(LorakitError, match=words):
            loading.load(str(tmp_path / name))
    with pytest.raises(LorakitError, match=r"none\.jsonl: no such file \(looked from "):
        loading.load(str(tmp_path / "none.jsonl"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        LorakitError,
        match=r"nothing: no file in it can be read \(it has none; known endings: \.aif",
    ):
        loading.load(str(tmp_path / "nothing"))


def test_the_example_data_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.load("data/relief.jsonl")[1].rows >= 200
    with pytest.raises(LorakitError, match=r"data/none\.jsonl: no such file"):
        loading.load("data/none.jsonl")


def test_the_hash_is_the_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert loading.load(str(tmp_path / "a.jsonl"))[1].sha256 == (
        "7c24616314d4c7ddcc755cd2cb42baf4e49ac41b1492fa02c30adc34e1cb2e5d"
    )


# Splitting


def test_split_is_seeded_disjoint_and_of_the_sizes_asked_for():
    rows = [qa(f"question number {i}", row=i) for i in range(100)]
    sets = splitting.split(rows, validation_fraction=0.2, test_fraction=0.1, seed=3)
    assert {n: len(s) for n, s in sets.items()} == {"train": 70, "validation": 20, "test": 10}
    assert sorted(e.row for s in sets.values() for e in s) == list(range(100))
    again, other = (
        splitting.split(rows, validation_fraction=0.2, test_fraction=0.1, seed=s) for s in (3, 4)
    )
    listed = [{name: list(rows) for name, rows in s.items()} for s in (sets, again, other)]
    assert listed[1] == listed[0] != listed[2]
    assert [e.row for e in sets["train"]] != sorted(e.row for e in sets["train"])
    whole = splitting.split(rows, validation_fraction=0, test_fraction=0)
    assert {n: len(s) for n, s in whole.items()} == {"train": 100, "validation": 0, "test": 0}


def test_a_share_is_at_least_one_row():
    sets = splitting.split([qa(f"question number {i}", row=i) for i in range(3)])
    assert {n: len(s) for n, s in sets.items()} == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("n", "fractions", "words"),
    [
        (
            1,
            {},
            "1 rows in 1 groups leave no validation row; add rows, raise validation_fraction, name "
            "validation_data, or set validation_fraction to 0",
        ),
        (2, {}, r"no row is left to train on \(2 rows in 2 groups\); add rows"),
        (1, {"validation_fraction": 0}, "no row is left to train on"),
    ],
)
def test_too_few_rows(n, fractions, words):
    with pytest.raises(LorakitError, match=words):
        splitting.split([qa(f"question number {i}") for i in range(n)], **fractions)


def test_one_large_group_leaves_no_row_to_test():
    rows = [qa(f"question number {i}", row=i, leaf="a") for i in range(20)]
    with pytest.raises(LorakitError, match="20 rows in 1 groups leave no test row"):
        splitting.split(rows, group_by="leaf")


def test_repeated_rows_are_named_with_the_first():
    rows = [
        qa("Is the well safe?", "No.", 1),
        qa("is the  well SAFE?\n", "no.", 2),
        qa("Is it?", "No.", 3),
        qa("Who comes?", "They.", 4),
        qa("Is the well safe?", "Yes.", 5),
        qa("Is the well safe?", "No.", 6),
    ]
    report = DataReport(file="f")
    sets = splitting.split(rows, report=report, validation_fraction=0, test_fraction=0.25)
    assert [(r.where, r.reason) for r in report.rejected] == [("f:6", "repeats f:1")]
    assert sorted(e.row for s in sets.values() for e in s) == [1, 2, 3, 4, 5]
    (together,) = [
        {1, 2, 5} & {e.row for e in s} for s in sets.values() if {1, 2, 5} & {e.row for e in s}
    ]
    assert together == {1, 2, 5} and report.sets == {"train": 4, "validation": 0, "test": 1}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), families=st.integers(4, 9), size=st.integers(1, 6))
def test_near_duplicates_never_stand_in_two_sets(seed, families, size):
    rng = random.Random(seed)
    rows, family = [], {}
    for f in range(families):
        words = sentence(rng, 120).split()
        for _ in range(rng.randint(1, size)):
            copy = list(words)
            copy[rng.randrange(120)] = (
                "changed"  # 3 of 121 three-grams: any two copies are 0.9 alike
            )
            family[len(rows)] = f
            rows.append(qa(" ".join(copy), "yes it is", len(rows)))
    rng.shuffle(rows)
    report = DataReport(file="f")
    rows += [
        qa(sentence(rng, 120), row=1000 + i) for i in range(2)
    ]  # so that no set can stay empty
    sets = splitting.split(
        rows, seed=seed, validation_fraction=0.2, test_fraction=0.2, report=report
    )
    homes = Counter((family.get(e.row, e.row), name) for name, s in sets.items() for e in s)
    assert len({f for f, _ in homes}) == len(homes) == families + 2
    assert sum(homes.values()) + len(report.rejected) == len(rows)
    assert {r.reason.split()[0] for r in report.rejected} <= {"repeats"}


def jaccard(a, b):
    grams = [{tuple(w[i : i + 3]) for i in range(len(w) - 2)} for w in (a.split(), b.split())]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_pairs_around_the_border_of_near():
    """About 0.85 counts as near, about 0.6 does not."""
    rng, found = random.Random(0), Counter()
    for changes, kind in ((2, "near"), (7, "apart")):
        for _ in range(60):
            words = [f"{rng.choice(WORDS)}{rng.randrange(1000)}" for _ in range(78)]
            other = list(words)
            for place in range(6, 6 + 10 * changes, 10):
                other[place] = "changed"
            one, two = qa(" ".join(words)), qa(" ".join(other))
            assert (
                0.85 < jaccard(duplicates.text(one), duplicates.text(two)) < 0.87 or kind == "apart"
            )
            assert (
                0.55 < jaccard(duplicates.text(one), duplicates.text(two)) < 0.62 or kind == "near"
            )
            found[kind] += bool(duplicates.near_pairs([one, two]))
    assert found["near"] == 60 and found["apart"] == 0


def test_many_that_resemble_each_other_cost_little():
    """3,000 texts in one wording, which tells nothing, with a number at its end: the two of a number belong together."""
    wording = " ".join(f"word{i}" for i in range(40))
    texts = [f"{wording} {i % 1500}" for i in range(3000)] + [
        f"{i} other words than {i * 7} there" for i in range(50)
    ]
    start = time.process_time()
    homes = duplicates.joined(len(texts), near.pairs(texts, 0.8))
    assert time.process_time() - start < 10
    assert homes.tolist() == [i % 1500 for i in range(3000)] + list(range(3000, 3050))
    assert near.pairs([], 0.8) == near.pairs(["", "one"], 0.8) == []
    assert near.pairs(["one two"] * 3, 0.8) == [(0, 1), (0, 2)]


def test_rows_without_three_words_are_compared_whole():
    rows = [qa("a"), qa("b"), qa("c"), qa("")]
    rows = [
        e.with_fields({"text": t})
        for e, t in zip(rows, ("yes", "no", "yes no", "maybe"), strict=True)
    ]
    assert duplicates.near_pairs(rows) == []


def test_group_by_keeps_equal_values_together():
    rng = random.Random(1)
    rows = [qa(sentence(rng), row=i, leaf=f"leaf {i % 12}", none=None) for i in range(60)]
    sets = splitting.split(
        rows, seed=1, validation_fraction=0.2, test_fraction=0.2, group_by="leaf"
    )
    homes = {e.fields["columns"]["leaf"]: set() for e in rows}
    for name, examples in sets.items():
        for e in examples:
            homes[e.fields["columns"]["leaf"]].add(name)
    assert all(len(h) == 1 for h in homes.values())
    assert {n: len(s) for n, s in sets.items()} == {"train": 40, "validation": 10, "test": 10}
    for column in ("leef", "none"):
        with pytest.raises(LorakitError, match=f"group_by='{column}': no row has that column"):
            splitting.split(rows, group_by=column)


def test_groups_and_near_duplicates_join():
    """a and b share a leaf, b and c words, c and d a leaf: one group."""
    rng = random.Random(2)
    shared = sentence(rng, 60)
    rows = [
        qa(sentence(rng), row=1, leaf=1),
        qa(shared, row=2, leaf=1),
        qa(shared + " too", row=3, leaf=2),
        qa(sentence(rng), row=4, leaf=2),
        *(qa(sentence(rng), row=i, leaf=i) for i in range(5, 17)),
    ]
    for seed in range(5):
        sets = splitting.split(
            rows, seed=seed, validation_fraction=0.25, test_fraction=0.25, group_by="leaf"
        )
        assert len({n for n, s in sets.items() for e in s if e.row <= 4}) == 1


# Sets with files of their own


def test_given_sets_are_taken_whole_and_nothing_leaks(tmp_path):
    long = sentence(random.Random(3), 60)
    near = [long + f" {i}" for i in range(4)]
    train = [*pairs(20), {"prompt": near[0], "completion": "x"}]
    test = [*pairs(4, "t"), {"prompt": near[1], "completion": "x"}, pairs(20)[7]]
    validation = [*pairs(3, "v"), {"prompt": near[2], "completion": "x"}, pairs(4, "t")[0]]
    sets, report = loading.prepare(
        sources.of_run(
            write(tmp_path, train, "train.jsonl"),
            test_data=write(tmp_path, test, "t.jsonl"),
            validation_data=write(tmp_path, validation, "v.jsonl"),
        )
    )
    assert asked(sets["test"]) == [r["prompt"] for r in test]
    assert asked(sets["validation"]) == ["v question 0", "v question 1", "v question 2"]
    kept = [r["prompt"] for i, r in enumerate(train) if i not in (7, 20)]
    assert sorted(asked(sets["train"])) == sorted(kept)
    assert {r.where: r.reason for r in report.rejected} == {
        "train.jsonl:8": "repeats t.jsonl:6",
        "v.jsonl:5": "repeats t.jsonl:1",
        "train.jsonl:21": "resembles t.jsonl:5, a test row",
        "v.jsonl:4": "resembles t.jsonl:5, a test row",
    }
    assert report.sets == {"train": 19, "validation": 3, "test": 6}
    assert report.notes[0].startswith(f"validation rows: {tmp_path}/v.jsonl: 5 rows, jsonl")


def test_a_bad_row_of_a_given_set_is_named_and_its_content_is_part_of_the_hash(tmp_path):
    train = write(tmp_path, pairs(20), "train.jsonl")
    test = write(tmp_path, [*pairs(2, "t"), "{"], "t.jsonl")
    sets, report = loading.prepare(sources.of_run(train, test_data=test))
    assert len(sets["test"]) == 2 and [r.where for r in report.rejected] == ["t.jsonl:3"]
    write(tmp_path, [*pairs(2, "u"), "{"], "t.jsonl")
    assert loading.prepare(sources.of_run(train, test_data=test))[1].sha256 != report.sha256
    with pytest.raises(
        LorakitError, match=r"t\.jsonl: the columns text fit no schema \(.*prompt_completion"
    ):
        loading.prepare(
            sources.of_run(train, test_data=write(tmp_path, [{"text": "t"}], "t.jsonl"))
        )


# A control


def test_shuffled_answers_are_the_same_answers_elsewhere():
    rows = [qa(f"question {i}", f"answer {i}", i) for i in range(40)]
    rows[0].fields["messages"][:0] = [{"role": "system", "content": "be brief"}]
    rows[1].fields["messages"] += qa("more?", "last").fields["messages"]
    shuffled = splitting.shuffle_answers(rows, seed=5)
    turns = [
        [[(m["role"], m["content"]) for m in e.fields["messages"]] for e in s]
        for s in (rows, shuffled)
    ]
    questions = [[[t for t in e if t[0] != "assistant"] for e in s] for s in turns]
    answers = [[t for e in s for t in e if t[0] == "assistant"] for s in turns]
    assert questions[0] == questions[1] and [e.row for e in shuffled] == [e.row for e in rows]
    assert sorted(answers[0]) == sorted(answers[1]) and len(answers[0]) == 41
    assert sum(a == b for a, b in zip(*answers, strict=True)) <= 4
    assert (
        splitting.shuffle_answers(rows, seed=5)
        == shuffled
        != splitting.shuffle_answers(rows, seed=6)
    )
    with pytest.raises(LorakitError, match="leave it out for plain text"):
        splitting.shuffle_answers([Example({"text": "t"}, "f", 1)], seed=0)


def test_a_control_leaves_the_test_rows_alone(tmp_path):
    path = write(tmp_path, pairs(40))
    plain, _ = loading.prepare(sources.of_run(path))
    control, report = loading.prepare(sources.of_run(path), shuffled=True)
    assert list(control["test"]) == list(plain["test"])
    for name in ("train", "validation"):
        assert asked(control[name]) == asked(plain[name])
        assert sorted(answered(control[name])) == sorted(answered(plain[name]))
    assert answered(control["train"]) != answered(plain["train"])
    assert any("dealt at random" in n for n in report.notes)


@pytest.mark.parametrize("name", ["relief.jsonl", "triage.jsonl"])
def test_shipped_data_splits(name):
    sets, report = loading.prepare(sources.of_run(str(ROOT / "data" / name)))
    assert sum(map(len, sets.values())) + len(report.rejected) == report.rows
    assert min(map(len, sets.values())) >= 20
