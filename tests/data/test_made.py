"""The example data that a program makes: the files that ship are what it makes, and they are fit to learn from."""

import csv
import importlib
import json
import wave
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from lorakit.data import loading, media, sources

DATA = ROOT / "data"
LEAF = {"folder": {"options": {"images": {"names": "{label}_{leaf}_{shot}"}}}}
DIGIT = {"folder": {"options": {"sounds": {"names": "{word}_{speaker}_{take}"}}}}


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    return importlib.import_module


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_leaves_are_what_their_program_draws(maker):
    """To a step of 1 in 255, which another processor's rounding may take."""
    made = {name: rest for name, *rest in islice(maker("make_leaves").pictures(0), 32)}
    assert len(made) == 32
    with (DATA / "leaf_captions.csv").open(encoding="utf-8") as file:
        captions = {row["image"]: row for row in csv.DictReader(file)}
    for name, (picture, caption, leaf) in made.items():
        shipped = np.asarray(Image.open(DATA / "leaves" / name), dtype=int)
        assert shipped.shape == (64, 64, 3) and abs(shipped - picture).max() <= 1, name
        assert captions[f"leaves/{name}"] == {
            "image": f"leaves/{name}",
            "caption": caption,
            "leaf": str(leaf),
        }


def test_leaves_are_all_there():
    files = [p.relative_to(DATA).as_posix() for p in sorted((DATA / "leaves").rglob("*.png"))]
    assert Counter(f.split("/")[1] for f in files) == dict.fromkeys(
        ("healthy", "rust", "blight", "spot"), 40
    )
    with (DATA / "leaf_captions.csv").open(encoding="utf-8") as file:
        assert sorted(row["image"] for row in csv.DictReader(file)) == files
    assert size(DATA / "leaves") < 1_500_000


def test_no_leaf_is_in_two_sets_and_none_resembles_another():
    source = sources.source(str(DATA / "leaves"), LEAF)
    sets, report = loading.prepare(
        {"train": source}, group_by="leaf", validation_fraction=0.15, test_fraction=0.2
    )
    leaves = [{row.fields["columns"]["leaf"] for row in rows} for rows in sets.values()]
    assert [len(some) for some in leaves] == [28, 4, 8] and len(set.union(*leaves)) == 40
    assert report.near_duplicates == 0 and not report.rejected
    assert {
        name: set(Counter(row.fields["label"] for row in rows).values())
        for name, rows in sets.items()
    } == {"train": {28}, "validation": {4}, "test": {8}}


def test_the_digits_are_what_their_program_sings(maker):
    made = dict(maker("make_digits").recordings(0))
    assert sorted(made) == sorted(p.name for p in (DATA / "digits").iterdir())
    assert Counter(name.split("_")[1] for name in made) == dict.fromkeys(
        ("ada", "ben", "eva", "tom"), 20
    )
    for name, samples in made.items():
        with wave.open(str(DATA / "digits" / name)) as file:
            assert file.getparams()[:3] == (1, 2, 8000)
            shipped = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
        assert len(shipped) == len(samples) and abs(shipped - samples).max() <= 1, name
    assert size(DATA / "digits") < 1_500_000


def test_digits_are_heard_with_their_words_and_speakers():
    rows, report = loading.load(
        sources.source(str(DATA / "digits"), DIGIT), columns={"text": "word"}
    )
    assert (report.schema, report.rows, report.rejected) == ("sound_text", 80, [])
    (row,) = [r for r in rows if r.file.endswith("seven_ben_1.wav")]
    assert row.fields["text"] == "seven" and row.fields["columns"]["speaker"] == "ben"
    assert 0.3 < len(media.sound(row.fields["media"][0])) / media.RATE < 0.8


def test_the_desks_are_what_their_program_writes(maker):
    with (DATA / "desks.csv").open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == list(
            maker("make_desks").rows(400, 7)
        )


def test_pairs_are_what_their_program_makes_and_equal_but_in_order(maker):
    made = list(maker("make_preferences").rows(240, 11))
    text = (DATA / "preferences.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == made
    for row in made:
        assert len(row["chosen"]) == len(row["rejected"]) and row["chosen"].startswith("road: ")
        assert sorted(row["chosen"].split(" | ")) == sorted(row["rejected"].split(" | "))


def test_calls_are_what_their_program_makes_and_each_is_offered_beside_another(maker):
    made = list(maker("make_tool_calls").rows(400, 12))
    text = (DATA / "tool_calls.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == made
    calls = [row["messages"][1]["tool_calls"][0]["function"] for row in made]
    offered = [[tool["function"]["name"] for tool in row["tools"]] for row in made]
    assert all(
        call["name"] in names and len({*names}) == 2
        for call, names in zip(calls, offered, strict=True)
    )
    names = [call["name"] for call in calls]
    assert {name: 70 < names.count(name) < 130 for name in names} == dict.fromkeys(
        ("get_road", "get_weather", "send_doctor", "send_goods"), True
    )
    assert (
        150
        < sum(call["name"] == names[0] for call, names in zip(calls, offered, strict=True))
        < 250
    )
    assert (
        json.loads(calls[0]["arguments"]).keys()
        == {
            tool["function"]["name"]: tool["function"]["parameters"]["properties"].keys()
            for tool in made[0]["tools"]
        }[names[0]]
    )
    assert [len(row["messages"]) for row in made[:4]] == [2, 2, 2, 4]
