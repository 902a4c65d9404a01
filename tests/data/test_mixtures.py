"""Several files in one run: shares of target tokens, sets disjoint across files, each file scored apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.data.sources import shares
from lorakit.results import evaluate, report
from lorakit.results.evaluate import Outcome
from lorakit.tasks.mixture import targets


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def talk(n, words, seed):
    rng = np.random.default_rng(seed)
    vocabulary = np.array(
        "well water road truck food tent clinic boil drink safe north south".split()
    )
    return [
        {"prompt": f"{' '.join(rng.choice(vocabulary, 6))} {seed}-{i}?",
         "completion": " ".join(rng.choice(vocabulary, rng.integers(2, words)))}
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """60 rows of long answers, 100 of short ones; five rows of the second stand in the first too."""
    long, short = talk(60, 20, 1), talk(100, 5, 2)
    return [write(tmp_path / "a.jsonl", long), write(tmp_path / "b.jsonl", [*short, *long[:5]])]


def prepared(base, tmp_path, data, **settings):
    return lorakit.prepare(
        lorakit.Run(data=data, model=base, output_dir=str(tmp_path), max_length=400, **settings)
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"weights": (3, 1)}, 0.75),
        ({"weights": (1, 1)}, 0.5),
        ({"weights": (0.2, 0.8)}, 0.2),
        ({"replay": 0.1}, 0.9),
    ],
)
def test_shares_of_target_tokens(base, tmp_path, files, settings, wanted):
    a, b = files
    if "replay" in settings:
        made = prepared(base, tmp_path, a, replay={b: settings["replay"]})
    else:
        made = prepared(base, tmp_path, dict(zip(files, settings["weights"], strict=True)))
    rows = made.rows["train"]
    of_a = np.asarray(rows.column("source")) == a
    assert targets(rows)[of_a].sum() / targets(rows).sum() == pytest.approx(wanted, abs=0.02)
    places = {*zip(rows.column("file"), rows.column("row"), strict=True)}
    plain = prepared(base, tmp_path, files).rows["train"]
    assert places == {*zip(plain.column("file"), plain.column("row"), strict=True)}  # none is lost
    assert sum("of the target tokens" in note for note in made.report.notes) == 2


def test_sets_are_disjoint_across_files_and_hold_each(base, tmp_path, files):
    made = prepared(base, tmp_path, dict.fromkeys(files, 1.0))
    assert [(r.row, r.reason.split(":")[0]) for r in made.report.rejected] == [
        (101 + i, "repeats a.jsonl") for i in range(5)
    ]
    contents = {name: {*rows.contents()} for name, rows in made.rows.items()}
    assert (
        not contents["train"] & contents["test"] and not contents["train"] & contents["validation"]
    )
    for rows in made.rows.values():
        assert {*rows.column("source")} == {*files}
    assert len(made.rows["test"]) == len(contents["test"])  # rows repeat in training alone
    assert "each set has its share of the files" in made.report.notes


def test_a_list_takes_the_files_as_they_are(base, tmp_path, files):
    made = prepared(base, tmp_path, files)
    assert sum(map(len, made.rows.values())) == 160
    checked = lorakit.check(made.run)
    assert checked.usable and sum(checked.rows.values()) == 165


def test_each_file_is_scored_apart():
    tokens = np.array([[2.0, 1, 1], [4.0, 1, 0], [6.0, 1, 0], [8.0, 1, 0]])
    before, after = (
        Outcome(tokens, [None] * 4, list("abcd")),
        Outcome(tokens * [0.5, 1, 1], [None] * 4, list("abcd")),
    )
    found = evaluate.scores({"loss": {}}, before, after, [None] * 4, files=["x", "y", "x", "y"])
    parts = found["loss"]["files"]
    assert [(n, p["before"], p["after"], p["rows"]) for n, p in parts.items()] == [
        ("x", 4.0, 2.0, 2), ("y", 6.0, 3.0, 2)
    ]  # fmt: skip
    assert [row["metric"] for row in report.score_rows(found)] == ["loss", "loss, x", "loss, y"]
    assert "files" not in evaluate.scores({"loss": {}}, before, after, [None] * 4)["loss"]


def test_files_of_unlike_kinds_are_refused(base, tmp_path, files):
    text = write(tmp_path / "t.jsonl", [{"text": f"some text {i}"} for i in range(30)])
    with pytest.raises(
        LorakitError, match=r"t.jsonl.*of one kind, and .*a.jsonl has prompt_completion"
    ):
        prepared(base, tmp_path, {files[0]: 1, text: 1})


def test_shares():
    assert shares("a", {}) == {"a": None} and shares(["a", "b"], {}) == {"a": None, "b": None}
    assert shares({"a": 3, "b": 1}, {"c": 0.2}) == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})
    with pytest.raises(LorakitError, match="data says no shares"):
        shares(["a", "b"], {"c": 0.1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": {"a": 0}}, "greater than 0"),
        ({"data": {"a": -1}}, "greater than 0"),
        ({"data": ["a", "a"]}, "names no file, or one twice"),
        ({"data": []}, "names no file"),
        ({"data": "a", "replay": {"b": 1.0}}, "less than 1"),
        ({"data": "a", "replay": {"b": 0.5, "c": 0.5}}, "leaves data no share"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(LorakitError, match=words):
        lorakit.Run(**settings)


def test_settings_survive_yaml(tmp_path):
    run = lorakit.Run(data={"a.jsonl": 3, "b.jsonl": 1}, replay={"c.txt": 0.1})
    run.write(tmp_path / "run.yaml")
    assert lorakit.Run.read(tmp_path / "run.yaml") == run
