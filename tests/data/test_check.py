"""What `lorakit check` says of a file: planted flaws are found, sound rows left alone, and a run does what was said."""

import importlib
import json
import os
import pickle
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers.models import byte_tokenizer
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import lorakit
from lorakit.cli import main
from lorakit.common import files, processes, registry
from lorakit.common.errors import LorakitError
from lorakit.data import example, loading, sources
from lorakit.data.example import Example, Examples
from lorakit.data.quality import scripts
from lorakit.data.schemas import turns
from lorakit.planning import clean_copy
from lorakit.tasks import rows

checking = importlib.import_module("lorakit.planning.check")  # lorakit.check is the function
MESSY = ROOT / "data" / "messy.jsonl"
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
    "mud",
    "sun",
]


@pytest.fixture(scope="module")
def tokenizer():
    """One byte is one token; a question and its answer take their bytes and four more."""
    return byte_tokenizer()


@pytest.fixture
def looked(tokenizer, tmp_path):
    """(rows, rows of the other sets by name) -> what was found."""

    def call(lines, *, settings=None, **others):
        sets = {
            name: save(tmp_path / f"{name}.jsonl", given)
            for name, given in {"train": lines, **others}.items()
        }
        given = sources.of_run(sets["train"], sets.get("validation"), sets.get("test"))

        def choose(schema):
            found = registry.load("schemas", schema).GIVES
            task = next(t for t in registry.modules("tasks").values() if found == t.GIVES)
            return lambda example, max_length: task.encode(example, tokenizer, max_length)

        return checking.look(given, choose=choose, **(settings or {}))

    return call


@pytest.fixture
def command(capsys):
    """(arguments) -> (exit code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def save(path, lines):
    path.write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines),
        encoding="utf-8",
    )
    return str(path)


def qa(question, answer="yes", **columns):
    return {"prompt": question, "completion": answer, **columns}


def labelled(**sizes):
    return [{"text": f"{name} {i}", "label": name} for name, n in sizes.items() for i in range(n)]


def found(checked, name):
    return [(f.level, f.text, f.rows, f.count) for f in checked.found[name]]


def sentence(rng, n=30):
    return " ".join(rng.choice(WORDS) for _ in range(n))


# Each check against planted flaws


def test_sound_rows_are_left_alone(looked):
    checked = looked(
        [
            qa(w)
            for w in (
                "Où est le puits ?",
                "«Вода» — так.",
                "水はどこですか。",
                "می‌خواهم",
                "👩‍👩‍👧 came",
                "a < b & c > d",
                "12 % @ 5 €",
                "Ã",
                "ask @team: the password is on paper",
                "key = value",
                "sk-short",
                "user at example",
            )
        ]
    )
    assert checked.usable
    assert [
        (n, f.level, f.text)
        for n, f in checked.findings()
        if n in ("characters", "private", "rejected")
    ] == []
    assert checked.checks["characters"].facts() == checked.checks["private"].facts() == {}


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ("replacement marks", "the caf\ufffd"),
        ("letters decoded twice", "the cafÃ©"),
        ("letters decoded twice", "it isnâ€™t"),
        ("control characters", "end\0"),
        ("control characters", "\x1b[31mred"),
        ("unusual line ends", "one\u2028two"),
        ("unusual line ends", "one\x85two"),
        ("invisible characters", "a\u200bb"),
        ("invisible characters", "a\u202eb"),
        ("HTML", "rice &amp; oil"),
        ("HTML", "<p>rice</p>"),
    ],
)
def test_odd_characters(looked, sign, words):
    checked = looked([qa("plain"), qa(words), qa("why?", words), qa("é")])
    (one,) = checked.found["characters"]
    assert (one.level, one.rows, one.count) == ("warning", ["train.jsonl:2", "train.jsonl:3"], 2)
    assert one.text.startswith(f"{sign} in 2 rows: ")
    assert checked.checks["characters"].facts() == {sign: 2}


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("e-mail address", "ana.ruiz+x@mail.example.org"),
        ("password", "Password: tall-green-kettle"),
        ("password", "api_key='0123456789'"),
        ("AWS key", "AKIAIOSFODNN7EXAMPLE"),
        ("API key", "sk-" + "x1" * 12),
        ("Hugging Face token", "hf_" + "aB3" * 11),
        ("GitHub token", "ghp_" + "aB3" * 12),
        ("Google key", "AIza" + "b" * 35),
        ("Slack token", "xoxb-123456-abcdef"),
        ("web token", "eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + "." + "c" * 12),
        ("private key", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_private_strings_are_named_and_not_repeated(looked, kind, secret):
    checked = looked([qa("plain"), qa("write", f"to {secret}, now")])
    (one,) = checked.found["private"]
    assert (one.level, one.rows, one.count) == ("warning", [f"train.jsonl:2: {secret[:6]}…"], 1)
    assert one.text.startswith(f"{kind}, or what looks like one, in 1 row: ")
    assert secret not in str(checked) + json.dumps(checked.as_dict())


def test_classes(looked):
    checked = looked(labelled(water=30, road=18, Water=1, tent=3))
    assert found(checked, "classes") == [
        ("note", "4 classes; always saying 'water' would be right in 57.7% of the rows", [], 0),
        (
            "warning",
            "2 classes of fewer than 10 rows ('Water' 1, 'tent' 3): a score on so few says little; add rows, "
            "or join classes",
            [],
            4,
        ),
        (
            "warning",
            "2 classes differ in case or blanks alone ('water' 30, 'Water' 1); use one name",
            [],
            1,
        ),
    ]
    assert checked.checks["classes"].facts() == {"water": 30, "road": 18, "tent": 3, "Water": 1}
    assert checked.usable


def test_one_class_is_wrong_when_it_is_a_label(looked):
    alone = looked(labelled(water=12))
    assert found(alone, "classes") == [
        ("wrong", "every row has the class 'water': there is nothing to tell apart", [], 12)
    ]
    assert not alone.usable
    assert found(looked([qa(f"q {i}", "no") for i in range(12)]), "classes")[0][0] == "warning"


def test_answers_are_classes_when_they_are_few_and_short(looked):
    few = looked([qa(f"q {i}", ("yes", "no")[i % 2]) for i in range(20)])
    assert few.checks["classes"].facts() == {"yes": 10, "no": 10}
    for other in (
        [qa(f"q {i}", f"answer {i}") for i in range(20)],
        [qa(f"q {i}", "yes " * 40) for i in range(20)],
        [{"text": f"text {i % 2}"} for i in range(20)],
    ):
        checked = looked(other)
        assert (checked.found["classes"], checked.checks["classes"].facts()) == ([], {})


def test_columns(looked):
    checked = looked(
        [
            qa("a", note="x", form=1),
            qa("b", note=" ", form=1),
            qa("c", note=None, form=1),
            qa("d", form=1),
        ]
    )
    assert checked.checks["fields"].facts() == {
        "prompt": {"values": 4, "empty": 0, "null": 0},
        "completion": {"values": 4, "empty": 0, "null": 0},
        "note": {"values": 1, "empty": 1, "null": 2},
        "form": {"values": 4, "empty": 0, "null": 0},
    }
    assert found(checked, "fields") == [
        ("note", "columns without a value in some of 4 rows: 'note' 3", [], 0),
        ("note", "columns that say the same in every row: 'completion', 'form'", [], 0),
    ]


def test_lengths(looked):
    lines = [qa("ab", "c"), qa("ab", "c" * 20), qa("a" * 30, "c")]  # 7, 26 and 35 tokens
    checked = looked(lines, settings={"max_length": 16})
    assert checked.checks["lengths"].facts() == {
        "max_length": 16,
        "examples": 3,
        "rows": 2,
        "tokens": 33,
        "trained": 2 + 11,
        "cut_rows": 1,
        "cut_tokens": 10,
        "nothing_to_train": 1,
        "longest": 26,
        "median": 16.5,
    }
    assert found(checked, "lengths") == [
        (
            "wrong",
            "1 row left out, because nothing is left to train; raise max_length=16 or shorten the question",
            ["train.jsonl:3: no answer token within max_length=16 (the row has 35 tokens)"],
            1,
        ),
        (
            "warning",
            "max_length=16 cuts 1 of 2 rows, 10 tokens (30.3%); such an answer is trained without its end",
            [],
            1,
        ),
        (
            "note",
            "tokens per row: half have at most 16, 95 % at most 25, the longest 26; 13 are trained",
            [],
            0,
        ),
    ]
    assert checked.checks["lengths"].lost == [35]  # drawn as well
    assert not checked.usable and looked(lines, settings={"max_length": 64}).usable


def test_long_texts_become_several_rows(looked):
    checked = looked([{"text": "a" * 25}, {"text": "b" * 5}], settings={"max_length": 10})
    assert checked.checks["lengths"].facts()["rows"] == 4
    assert found(checked, "lengths")[0][1].endswith("; 2 examples became 4 rows")


def test_scripts(looked):
    lines = [qa(f"question {i}") for i in range(40)] + [qa("Где вода", "там"), qa("123", "45")]
    checked = looked(lines)
    assert checked.checks["scripts"].facts()["rows"] == {
        "Latin": 40,
        "Cyrillic": 1,
        "no letters": 1,
    }
    assert checked.checks["scripts"].facts()["letters"] == {"Latin": 40 * 11, "Cyrillic": 10}
    assert found(checked, "scripts") == [
        ("note", "letters: Latin 97.8%, Cyrillic 2.2%", [], 0),
        (
            "warning",
            "1 row mostly in Cyrillic letters, unlike the rest; so few teach little: are they meant to be "
            "there?",
            ["train.jsonl:41"],
            1,
        ),
        ("note", "1 row without a letter", ["train.jsonl:42"], 1),
    ]
    assert [scripts.script(c) for c in "aéжأ水ひカ한अｗªµ"] == [
        "Latin",
        "Latin",
        "Cyrillic",
        "Arabic",
        "Han",
        "Japanese",
        "Japanese",
        "Hangul",
        "Devanagari",
        "Latin",
        "Latin",
        "Greek",
    ]


def test_rows_that_cannot_be_used_are_counted_by_what_is_wrong(looked):
    checked = looked(
        [qa("a"), qa("b", ""), "{", qa("c", None), '{"prompt": 1 2}', qa("d", " "), "[]"]
    )
    assert checked.checks["rejected"].facts() == {
        "usable": 1,
        "rejected": {
            "'completion' is empty": 2,
            "broken JSON: Expecting property name enclosed in double quotes": 1,
            "'completion' is null": 1,
            "broken JSON: Expecting ',' delimiter": 1,
            "expected an object {…}, found list": 1,
        },
    }
    ((level, words, places, count),) = found(checked, "rejected")
    assert (level, places, count) == ("wrong", [], 6)
    assert words.startswith("6 rows cannot be used: 2 × 'completion' is empty, ")
    assert [r.row for r in checked.report.rejected] == [2, 3, 4, 5, 6, 7] and not checked.usable


def test_repetitions(looked):
    checked = looked(
        [
            qa("Where?", "Here."),
            qa("who?"),
            qa(" WHERE? ", "here."),
            qa("Where?", "There."),
            qa("who?"),
        ]
    )
    assert checked.checks["duplicates"].facts() == {"within train": 1}  # case and blanks count
    assert found(checked, "duplicates") == [
        (
            "warning",
            "1 row left out of train as repetitions of other rows there",
            ["train.jsonl:5 repeats train.jsonl:2"],
            1,
        )
    ]
    assert checked.usable


def test_near_repetitions(looked):
    rng = random.Random(0)
    long = [sentence(rng, 40) for _ in range(4)]
    checked = looked([*map(qa, long), qa(long[1] + " now"), qa(long[1] + " now!"), qa(long[1])])
    ((level, words, places, count),) = found(checked, "near_duplicates")
    assert (level, count) == ("warning", 2)
    assert (
        words
        == "2 rows nearly the same as others in train; they are kept in one set, so that the test stays fair"
    )
    assert places == [
        "train.jsonl:5 resembles train.jsonl:2",
        "train.jsonl:6 resembles train.jsonl:2",
    ]
    assert checked.checks["duplicates"].facts() == {"within train": 1}


def test_leaks_between_files(looked):
    rng = random.Random(0)
    long = [sentence(rng, 40) for _ in range(9)]
    train = [*map(qa, long[:3]), qa(long[3] + " now"), qa(long[5]), qa(long[0])]
    checked = looked(
        train,
        validation=[qa(long[1]), qa(long[6]), qa(long[7])],
        test=[qa(long[0].upper()), qa(long[3]), qa(long[6] + " today"), qa(long[8])],
    )
    assert checked.rows == {"train": 6, "validation": 3, "test": 4} and not checked.usable
    assert checked.checks["duplicates"].facts() == {"within train": 1, "train and validation": 1}
    assert checked.checks["near_duplicates"].facts() == {
        "validation and test": 1,
        "train and test": 2,
    }
    proof = "a score on rows that were trained on proves nothing"
    assert sorted(found(checked, "duplicates")) == [
        (
            "warning",
            "1 row left out of train as repetitions of other rows there",
            ["train.jsonl:6 repeats train.jsonl:1"],
            1,
        ),
        (
            "wrong",
            f"1 row left out of train as repetitions of rows in validation; {proof}",
            ["train.jsonl:2 repeats validation.jsonl:1"],
            1,
        ),
    ]
    assert sorted(found(checked, "near_duplicates")) == sorted(
        [
            (
                "wrong",
                f"2 rows left out of train as near repetitions of rows in test; {proof}",
                ["train.jsonl:1 resembles test.jsonl:1", "train.jsonl:4 resembles test.jsonl:2"],
                2,
            ),
            (
                "wrong",
                f"1 row left out of validation as near repetitions of rows in test; {proof}",
                ["validation.jsonl:2 resembles test.jsonl:3"],
                1,
            ),
        ]
    )
    assert "\ntest rows: " in str(checked) and "\nvalidation rows: " in str(checked)


def test_another_file_has_to_serve_the_same_task(looked):
    with pytest.raises(LorakitError, match=r"test\.jsonl: the columns text fit no schema"):
        looked([qa("a")], test=[{"text": "plain"}])
    with pytest.raises(
        LorakitError,
        match=r"test\.jsonl: no usable row; the first: test\.jsonl:1: 'prompt' is empty",
    ):
        looked([qa("a"), qa("a", "")], test=[qa(""), "{", qa("")])


# The sample


def test_the_sample_is_uniform_and_in_order():
    held, size, total, tries = 4, 2, 12, 4000
    drawn = np.zeros(total)
    for seed in range(tries):
        sample = checking._Sample(held, size, seed)
        for i in range(total):
            sample.see(Example({}, "f", i), "train")
        places = [row.row for row, _ in sample.rows()]
        assert len(places) == size and places == sorted(places)
        drawn[places] += 1
    expected = tries * size / total
    assert abs(drawn - expected).max() < 5 * (expected * (1 - size / total)) ** 0.5


def test_the_sample_is_stated(looked):
    lines = [qa(f"question {i}", "c" * 200) for i in range(60)] + [qa("end\0")]
    checked = looked(lines, settings={"whole": 60, "sample": 20, "max_length": 64})
    assert (checked.sampled, checked.rows) == (20, {"train": 61})
    stated = [
        n
        for n, f in checked.findings()
        for line in checked._lines(n, f)
        if line.endswith(" (among 20 of 61 rows, drawn at random)")
    ]
    assert set(stated) == {"lengths"}
    assert checked.checks["lengths"].facts()["examples"] == 20
    assert checked.checks["characters"].facts() == {
        "control characters": 1
    }  # the others see every row
    assert "drawn at random" not in str(looked(lines))


# For people and for programs


def test_the_worst_comes_first_and_what_is_not_shown_is_counted(looked):
    checked = looked(
        [*(qa(f"question {i} \0") for i in range(14)), qa("\ufffd"), qa("b", ""), qa("note")]
    )
    lines = checked.lines()
    assert lines[0] == (
        f"{checked.report.file}: 17 rows, jsonl; schema prompt_completion, because the rows have "
        "'prompt' and 'completion'"
    )
    assert lines[1:4] == [
        "16 rows can be used, 1 cannot; sets: train 16",
        "1 error, 3 warnings",
        "WRONG: 1 row cannot be used: 1 × 'completion' is empty",
    ]
    assert lines[4].startswith("WARNING: every row has the class 'yes'")
    assert lines[5].startswith("WARNING: control characters in 14 rows: ")
    assert lines[6:12] == [*(f"    train.jsonl:{i}" for i in range(1, 6)), "    … and 9 more"]
    assert lines[12].startswith("WARNING: replacement marks in 1 row: ")
    assert not [line for line in lines[14:] if line.startswith("W")]
    assert checked.words("private") == "" and checked.words("characters") == "\n".join(lines[5:14])


def test_the_json_is_plain_and_complete(looked):
    checked = looked(
        [
            *labelled(water=12, road=11),
            {"text": "a@b.example", "label": "road"},
            {"text": "x\0", "label": ""},
        ]
    )
    plain = json.loads(json.dumps(checked.as_dict()))
    assert plain == checked.as_dict()
    assert plain.keys() == {"usable", "rows", "sampled", "report", "findings", "facts"}
    assert set(plain["facts"]) == set(registry.names("checks"))
    assert [
        (f["check"], f["level"], f["text"], f["rows"], f["count"]) for f in plain["findings"]
    ] == [(n, f.level, f.text, f.rows, f.count) for n, f in checked.findings()]
    assert plain["report"]["rejected"] == [
        {"file": "train.jsonl", "row": 25, "reason": "'label' is empty"}
    ]
    assert all(f["text"] in str(checked) for f in plain["findings"])


@pytest.mark.filterwarnings("error")
def test_a_picture_of_each_check(looked, tmp_path):
    checked = looked(
        [*labelled(water=12, **{"水": 3, "$\\frac$": 2, "n\0ul": 1, "long " * 20: 1}), "{"]
    )
    for names in ((), ("classes",), ("lengths", "rejected"), ("private",)):
        figure = checked.picture(*names)
        figure.savefig(tmp_path / "p.png")
        assert (
            (tmp_path / "p.png").read_bytes()[:8] == figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
        )
    assert [axes.get_title(loc="left") for axes in checked.picture("classes", "rejected").axes] == [
        "classes, rows",
        "usable or not, rows",
    ]
    assert checked.picture("private").axes == []  # nothing to see
    with pytest.raises(LorakitError, match="there is no check 'length'; did you mean 'lengths'"):
        checked.picture("length")
    with pytest.raises(LorakitError, match="there is no check 'length'"):
        checked.words("length")


# The command


def settings_for(base, **more):
    return [x for k, v in {"model": base, **more}.items() for x in ("--set", f"{k}={v}")]


def test_exit_codes_and_json(command, base, tmp_path):
    path = save(tmp_path / "rows.jsonl", [qa("a"), qa("b", "no")])
    whole = settings_for(base, validation_fraction=0, test_fraction=0)
    code, out, err = command("check", path, "--json", *whole)
    assert (code, err, json.loads(out)["usable"], json.loads(out)["rows"]) == (
        0,
        "",
        True,
        {"train": 2},
    )
    half = "\ud800"  # of a character
    path = save(
        tmp_path / "rows.jsonl", [qa("a"), qa("b", ""), qa(half, **{half: 1}), qa("c", **{half: 1})]
    )
    for more in ([], ["--json"]):
        code, out, err = command("check", path, *settings_for(base), *more)
        assert (
            (code, err) == (1, "") and "'completion' is empty" in out and "half a character" in out
        )


def test_a_picture_from_the_command(command, base, tmp_path):
    path = save(tmp_path / "rows.jsonl", [qa("a"), qa("b", "no")])
    whole = settings_for(base, validation_fraction=0, test_fraction=0)
    assert command("check", path, "--picture", tmp_path / "new" / "p.png", *whole)[0] == 0
    assert (tmp_path / "new" / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_settings_of_a_run(command, base, tmp_path):
    test = save(tmp_path / "test.jsonl", [{"q": "a", "a": "yes"}, {"q": "new", "a": "no"}])
    run = {
        "model": base,
        "data": save(tmp_path / "rows.jsonl", [{"q": "a", "a": "yes"}, {"q": "b" * 50, "a": "no"}]),
        "test_data": test,
        "columns": {"prompt": "q", "answer": "a"},
        "max_length": 32,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    code, out, _ = command("check", tmp_path / "run.yaml")
    assert code == 1 and "4 rows can be used, 0 cannot; sets: train 2, test 2\n3 errors, " in out
    assert (
        "rows.jsonl:1 repeats test.jsonl:1" in out and "no answer token within max_length=32" in out
    )
    code, out, _ = command(
        "check",
        tmp_path / "run.yaml",
        *settings_for(
            base, max_length=128, test_data="null", validation_fraction=0, test_fraction=0
        ),
    )
    assert code == 0 and "0 errors, " in out


# The clean copy


def test_a_clean_copy_of_the_messy_file(command, base, tmp_path):
    before = MESSY.read_bytes()
    (tmp_path / "messy.jsonl").write_bytes(before)
    arguments = settings_for("tiny", max_length=256)
    assert command("check", tmp_path / "messy.jsonl", *arguments)[0] == 1
    code, out, err = command("check", tmp_path / "messy.jsonl", "--fix", *arguments)
    clean, left = tmp_path / "messy.clean.jsonl", tmp_path / "messy.rejected.jsonl"
    assert (code, out, err) == (0, f"{clean}\n{left}\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "messy.clean.jsonl",
        "messy.jsonl",
        "messy.rejected.jsonl",
    ]
    assert (tmp_path / "messy.jsonl").read_bytes() == before
    rejected = [json.loads(line) for line in left.read_text(encoding="utf-8").splitlines()]
    kept = clean.read_text(encoding="utf-8").splitlines()
    lines = before.decode().splitlines()
    assert kept == [
        line for i, line in enumerate(lines, 1) if i not in {r["row"] for r in rejected}
    ]
    assert [(r["row"], r["reason"].split(":")[0]) for r in rejected] == [
        (22, "no answer token within max_length=256 (the row has 401 tokens)"),
        (63, "'message' is null"),
        (66, "repeats messy.jsonl"),
        (77, rejected[3]["reason"]),
        (85, "repeats messy.jsonl"),
        (89, "'category' is empty"),
        (109, "broken JSON"),
    ]
    assert "is missing" in rejected[3]["reason"]
    code, out, _ = command("check", clean, *arguments)
    assert code == 0 and "131 rows can be used, 0 cannot; sets: train 131\n0 errors, " in out
    assert "repeats" not in out


@pytest.mark.parametrize("there", ["rows.clean.jsonl", "rows.rejected.jsonl"])
def test_nothing_is_written_over(command, base, tmp_path, there):
    path = save(tmp_path / "rows.jsonl", [qa("a"), qa("a")])
    (tmp_path / there).write_text("mine")
    code, out, err = command("check", path, "--fix", *settings_for(base))
    assert (code, out) == (1, "") and f"{there}: is there already; move it away first" in err
    assert (tmp_path / there).read_text() == "mine" and len([*tmp_path.iterdir()]) == 2


def test_a_clean_copy_holds_what_the_file_held(base, tmp_path):
    half = {"prompt": "é\u2028", "completion": "水", "n": [1, {"x": None}], "odd": "\ud800"}
    path = save(tmp_path / "rows.jsonl", [half, qa("b", "")])
    clean, left = clean_copy.fix(lorakit.Run(data=path, model=base), tmp_path / "new")
    assert (clean, left) == (
        tmp_path / "new" / "rows.clean.jsonl",
        tmp_path / "new" / "rows.rejected.jsonl",
    )
    assert [r.fields for r in sources.source(str(clean)).read()] == [half]
    assert json.loads(left.read_text()) == {
        "file": "rows.jsonl",
        "row": 2,
        "reason": "'completion' is empty",
    }


def test_a_table_becomes_json_lines(command, base, tmp_path):
    (tmp_path / "t.csv").write_text('ask;say\n"a;b";1\nc;\n')
    columns = ["--columns", "prompt=ask,completion=say", *settings_for(base)]
    assert command("check", tmp_path / "t.csv", "--fix", *columns)[0] == 0
    assert (tmp_path / "t.clean.jsonl").read_text() == '{"ask": "a;b", "say": "1"}\n'
    whole = settings_for(base, validation_fraction=0, test_fraction=0)
    assert command("check", tmp_path / "t.clean.jsonl", *columns[:2], *whole)[0] == 0


def test_a_clean_copy_that_cannot_be_made_leaves_nothing(command, base, tmp_path, monkeypatch):
    path = save(tmp_path / "rows.jsonl", [qa("a"), qa("b")])

    def broken(*args, **kwargs):
        row = Example({**turns("a", "b"), "columns": {"picture": b"\x89PNG"}}, "rows.jsonl", 1)
        return SimpleNamespace(schema="messages", rows=iter([row]))

    monkeypatch.setattr(loading, "read", broken)
    monkeypatch.setattr(
        clean_copy, "encoder_of", lambda run: (lambda schema: lambda example, max_length: [], [])
    )
    code, _, err = command("check", path, "--fix", *settings_for(base))
    assert code == 1 and "rows.jsonl:1: cannot be written as JSON" in err
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


# The file with planted flaws


def test_the_messy_file_is_what_its_program_writes(monkeypatch):
    monkeypatch.syspath_prepend(str(MESSY.parent))
    made = importlib.import_module("make_messy").lines(seed=3)
    assert MESSY.read_text(encoding="utf-8").splitlines() == made and MESSY.stat().st_size < 60_000


def test_each_check_finds_something_in_the_messy_file():
    checked = lorakit.check(lorakit.Run(data=str(MESSY), max_length=256))
    checks = {*registry.names("checks")} - {"preferences"}  # its rows are no pairs
    assert {name for name, f in checked.findings() if f.level != "note"} == checks - {"fields"}
    assert len(checked.picture().axes) == len(checks)
    assert checked.checks["characters"].facts() == {
        "letters decoded twice": 1,
        "HTML": 1,
        "control characters": 1,
        "replacement marks": 1,
    }
    assert checked.checks["private"].facts() == {"e-mail address": 1, "AWS key": 1, "password": 1}
    assert checked.checks["classes"].facts() == {
        "water": 68,
        "transport": 34,
        "health": 25,
        "shelter": 6,
        "Water": 1,
    }
    assert checked.checks["scripts"].facts()["rows"] == {"Latin": 131, "Cyrillic": 3}
    assert (checked.checks["duplicates"].facts(), checked.checks["near_duplicates"].facts()) == (
        {"within train": 2},
        {"within train": 5},
    )


# A run does what was said


def said(checked):
    """What `check` says a run will do with the rows."""
    facts = {name: one.facts() for name, one in checked.checks.items()}
    repeated = sum(facts["duplicates"].values())
    leaking = sum(
        n for sets, n in facts["near_duplicates"].items() if not sets.startswith("within")
    )
    return {
        "rejected": len(checked.report.rejected),
        "repeated": repeated,
        "leaking": leaking,
        "alike": sum(facts["near_duplicates"].values()),
    }


def done(prepared):
    reasons = [r.reason for r in prepared.report.rejected]
    kinds = [("repeated", "repeats"), ("leaking", "resembles"), ("lost", "no answer token")]
    out = {name: sum(r.startswith(start) for r in reasons) for name, start in kinds}
    return {
        **out,
        "rejected": len(reasons) - sum(out.values()),
        "alike": prepared.report.near_duplicates,
    }


@pytest.mark.parametrize("own_test", [False, True])
def test_the_messy_file_is_prepared_as_check_said(own_test, tmp_path):
    lines = MESSY.read_text(encoding="utf-8").splitlines()
    exam = save(
        tmp_path / "exam.jsonl", [*lines[:3], *(line.replace(". ", "; ", 1) for line in lines[3:6])]
    )
    run = lorakit.Run(data=str(MESSY), max_length=256, **({"test_data": exam} if own_test else {}))
    checked, prepared = lorakit.check(run), lorakit.prepare(run)
    lengths = checked.checks["lengths"].facts()
    does = done(prepared)
    more = 3 * own_test
    assert said(checked) == {
        "rejected": 4,
        "repeated": 2 + more,
        "leaking": 4 * own_test,
        "alike": 5 + more,
    }
    assert does == {**said(checked), "lost": lengths["nothing_to_train"]} and does["lost"] == 1
    usable = sum(checked.rows.values())
    assert usable == 134 + 6 * own_test
    assert (
        sum(map(len, prepared.rows.values()))
        == usable - does["repeated"] - does["leaking"] - does["lost"]
    )
    leaks = {
        place
        for name, f in checked.findings("duplicates", "near_duplicates")
        if f.level == "wrong"
        for place in f.rows
    }
    assert leaks == {
        f"{r.where} {r.reason.removesuffix(', a test row')}"
        for r in prepared.report.rejected
        if "exam" in r.reason
    }


def test_cut_and_lost_rows_are_those_that_check_named(base, tmp_path):
    rng = random.Random(1)
    lines = [
        qa(f"{i} {sentence(rng, rng.randint(1, 12))}", sentence(rng, rng.randint(1, 12)))
        for i in range(80)
    ]
    run = lorakit.Run(data=save(tmp_path / "rows.jsonl", lines), model=base, max_length=50)
    facts, prepared = lorakit.check(run).checks["lengths"].facts(), lorakit.prepare(run)
    cut = np.concatenate([np.asarray(rows.arrow("cut")) for rows in prepared.rows.values()])
    targets = sum(sum(map(sum, rows.column("targets"))) for rows in prepared.rows.values())
    assert (facts["cut_rows"], facts["cut_tokens"]) == (np.count_nonzero(cut), cut.sum())
    assert (facts["rows"], facts["trained"]) == (len(cut), targets)
    assert facts["nothing_to_train"] == len(prepared.report.rejected)
    assert (
        min(facts["cut_rows"], facts["nothing_to_train"]) > 5
    )  # the file was such that all of it happened


@pytest.mark.parametrize("seed", range(3))
def test_three_files_are_prepared_as_check_said(base, tmp_path, seed):
    rng = random.Random(seed)
    pool = [sentence(rng, 25) for _ in range(25)]

    def some(n):
        texts = [rng.choice(pool) + rng.choice(["", "", " now", " now then"]) for _ in range(n)]
        return [
            rng.choice([qa(text), qa(text.upper()), qa(text, "no"), qa(text, ""), "{"])
            for text in texts
        ]

    paths = {
        name: save(tmp_path / f"{name}.jsonl", [*some(n), qa(f"{name} alone {sentence(rng)}")])
        for name, n in (("train", 40), ("validation", 8), ("test", 8))
    }
    run = lorakit.Run(
        data=paths["train"],
        validation_data=paths["validation"],
        test_data=paths["test"],
        model=base,
    )
    checked, prepared = lorakit.check(run), lorakit.prepare(run)
    assert done(prepared) == {**said(checked), "lost": 0}
    assert min(said(checked).values()) > 0  # the files were such that all of it happened
    left = {
        name: n
        - sum(
            c
            for check in ("duplicates", "near_duplicates")
            for sets, c in checked.checks[check].facts().items()
            if sets.startswith(f"{name} and")
            or (sets == f"within {name}" and check == "duplicates")
        )
        for name, n in checked.rows.items()
    }
    assert left == {name: len(r) for name, r in prepared.rows.items()}


# Encoding in several processes


def test_several_processes_encode_the_same_rows(tokenizer, monkeypatch):
    rng = random.Random(0)
    many = Examples(
        Example(turns(f"{i} {sentence(rng, i % 20)}", sentence(rng, 1 + i % 5)), "f", i)
        for i in range(1100)
    )
    task, out = registry.load("tasks", "chat"), []
    for least in (len(many) + 1, 1):
        monkeypatch.setattr(rows, "PARALLEL", least)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        encoded, rejected, notes = rows.encode({"train": many}, task, tokenizer, 96)
        out.append((encoded["train"].dataset.to_dict(), rejected, notes))
    assert out[0] == out[1]
    content, rejected, notes = out[0]
    assert (
        len(content["ids"]) + len(rejected) == 1100
        and len(rejected) > 100
        and "rows are longer" in notes[0]
    )
    assert content["row"] == sorted(content["row"]) and all(
        tokenizer.decode(ids) for ids in content["ids"][:3]
    )


# Examples on disk

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "\0", "水"]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=5,
)
some_examples = st.lists(
    st.builds(
        Example,
        st.dictionaries(st.text(max_size=4), plain, max_size=3),
        st.text(max_size=4),
        st.integers(1, 10**9),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(some_examples)
def test_examples_give_back_what_was_put_in(given):
    put = Examples(iter(given))
    again = pickle.loads(pickle.dumps(put))
    for one in (put, again):
        assert len(one) == len(given) and list(one) == given
        assert [one[i] for i in reversed(range(len(one)))] == given[::-1]
        for index in (-1 - len(given), len(given)):
            with pytest.raises(IndexError):
                one[index]


def test_examples_leave_no_file_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(example.tempfile, "tempdir", str(tmp_path))
    put = Examples([Example({"a": 1}, "f", 1)])
    copy = pickle.loads(pickle.dumps(put))
    (file,) = tmp_path.iterdir()
    assert file.suffixes == [".rows", processes.part()]  # swept when the process is killed
    assert copy[0] == put[0] == Example({"a": 1}, "f", 1)
    del copy
    assert len([*tmp_path.iterdir()]) == 1  # the copy does not own it
    del put
    assert [*tmp_path.iterdir()] == []


# The cache

BUILD = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from lorakit.common import files

def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))
    (folder / "half").rename(folder / "whole")

print(files.cached("key", build), sorted(p.name for p in files.cached("key", build).iterdir()), flush=True)
"""


def builder(seconds, cache):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LORAKIT_CACHE": str(cache)},
        cwd=ROOT,
    )


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    both = [builder(1, tmp_path) for _ in range(2)]
    out = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(len, out)) == [1, 2] and max(out, key=len)[0] == "building"
    assert {lines[-1] for lines in out} == {f"{tmp_path / 'key'} ['whole']"}


def test_a_killed_build_is_swept_and_made_again(tmp_path, monkeypatch):
    process = builder(60, tmp_path)
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.communicate()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [
        f"key{processes.part(process.pid)}"
    ]
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    folder = files.cached("key", lambda part: (part / "new").write_text("new"))
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["key"]
    assert [p.name for p in folder.iterdir()] == ["new"]


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))

    def fails(part):
        (part / "half").write_text("half")
        raise LorakitError("rows.jsonl:3: is wrong")

    for _ in range(2):  # and is tried again
        with pytest.raises(LorakitError, match=r"^rows\.jsonl:3: is wrong$"):
            files.cached("key", fails)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_the_cache_forgets_what_was_longest_unused(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(files, "CACHE_BYTES", 2500)

    def put(key, age):
        folder = files.cached(key * 32, lambda part: (part / "x").write_bytes(bytes(1000)))
        os.utime(folder, (time.time() - age,) * 2)

    def there():
        return sorted(p.name.removesuffix(p.name[0] * 31) for p in tmp_path.iterdir() if p.is_dir())

    (tmp_path / "answers").mkdir()  # of another kind: no entry that is forgotten
    (tmp_path / "answers/x").write_bytes(bytes(9000))
    put("a", 400), put("b", 300)
    assert there() == ["a", "answers", "b"]
    files.cached("a" * 32, pytest.fail)  # used again: now b is the oldest
    put("c", 0)
    assert there() == ["a", "answers", "c"]
    files.cached("e" * 32, lambda part: (part / "x").write_bytes(bytes(9000)))
    assert there() == ["answers", "e"]  # what was just made stays, however large


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written(place, tmp_path, monkeypatch, run):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / place))
    with pytest.raises(
        LorakitError,
        match="the cache cannot be written .*; name another folder in the environment "
        "variable LORAKIT_CACHE",
    ):
        lorakit.prepare(run)
