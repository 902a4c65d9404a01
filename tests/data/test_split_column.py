"""One table with a column that names each row's set: the sets are those, whatever the fractions say."""

import csv
import json

import pytest

from lorakit.common.errors import LorakitError
from lorakit.data.loading import prepare
from lorakit.data.sources import of_run

WORDS = "amber birch cedar dahlia elder fern gorse hazel iris juniper kelp laurel".split()


def rows(count=24, **more):
    made = []
    for i in range(count):
        a, b, c = WORDS[i % 12], WORDS[(i * 5 + 3) % 12], WORDS[(i * 7 + i // 12) % 12]
        made.append({"prompt": f"{a} near {b} with {c} number {i * i}", "completion": f"{c} {i}"})
    return made


def written(path, some):
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(path)


def numbers(sets):
    """Name of a set -> the numbers that its answers end in."""
    return {
        name: sorted(int(row.fields["messages"][-1]["content"].split()[-1]) for row in part)
        for name, part in sets.items()
    }


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("split", ("train", "validation", "test")),
        ("Dataset Split", ("Training", "dev", "TEST")),
        ("subset", ("train", "val", "holdout")),
        ("partition", ("train", "eval", "testing")),
    ],
)
def test_the_column_decides(tmp_path, column, words):
    some = rows()
    for i, row in enumerate(some):
        row[column] = words[0 if i < 14 else 1 if i < 18 else 2]
    sets, report = prepare(of_run(written(tmp_path / "a.jsonl", some)))
    assert numbers(sets) == {
        "train": [*range(14)],
        "validation": [*range(14, 18)],
        "test": [*range(18, 24)],
    }
    assert report.used[column] == "names the set"
    assert column not in report.unused
    assert (
        f"the data's own splits are used, as {column!r} names them: train, validation, test"
        in report.notes
    )


def test_a_table_without_validation_rows_draws_them_from_its_training_rows(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "completion", "set"])
        table.writeheader()
        table.writerows(
            row | {"set": "test" if i % 4 == 0 else "train"} for i, row in enumerate(rows())
        )
    sets, _ = prepare(of_run(str(path)))
    found = numbers(sets)
    assert found["test"] == [0, 4, 8, 12, 16, 20]
    assert len(found["validation"]) == 2
    assert sorted(found["train"] + found["validation"]) == [i for i in range(24) if i % 4]


@pytest.mark.parametrize("value", ["train", "test"])
def test_one_set_alone_is_split_as_any_file(tmp_path, value):
    sets, report = prepare(
        of_run(written(tmp_path / "a.jsonl", [row | {"split": value} for row in rows()]))
    )
    assert {name: len(part) for name, part in sets.items()} == {
        "train": 20,
        "validation": 2,
        "test": 2,
    }
    assert not [note for note in report.notes if "own splits" in note]


def test_a_column_that_is_ignored_or_means_something_else(tmp_path):
    some = [row | {"split": "test" if i % 2 else "train"} for i, row in enumerate(rows())]
    path = written(tmp_path / "a.jsonl", some)
    sets, report = prepare(of_run(path), ignore_columns=["split"])
    assert len(sets["train"]) == 20 and report.unused == ["split"]
    sets, _ = prepare(of_run(path), keep_rows={"split": "train"})
    assert sum(map(len, sets.values())) == 12
    other = [row | {"set": str(i % 3)} for i, row in enumerate(rows())]
    sets, report = prepare(of_run(written(tmp_path / "b.jsonl", other)))
    assert len(sets["train"]) == 20 and report.unused == ["set"]


def test_a_set_with_a_file_of_its_own(tmp_path):
    some = [row | {"split": "test" if i < 6 else "train"} for i, row in enumerate(rows())]
    held = [{"prompt": "what of the old mill", "completion": "mill 99"}]
    path = written(tmp_path / "a.jsonl", some)
    sets, report = prepare(of_run(path, test_data=written(tmp_path / "b.jsonl", held)))
    assert numbers(sets)["test"] == [99]
    assert min(numbers(sets)["train"]) >= 6
    assert "6 rows that 'split' counts to test are left out: test has a file of its own" in (
        report.notes
    )


@pytest.mark.parametrize("word", [None, "", "extra"])
def test_a_row_of_no_set_among_the_first_is_refused_too(tmp_path, word):
    some = [row | {"split": "test" if i < 6 else "train"} for i, row in enumerate(rows())]
    some[9]["split"] = word
    with pytest.raises(LorakitError, match="names the set of every row") as error:
        prepare(of_run(written(tmp_path / "a.jsonl", some)))
    assert error.value.where == "a.jsonl:10"


def test_a_row_without_a_set_is_refused(tmp_path):
    some = [row | {"split": "test" if i < 6 else "train"} for i, row in enumerate(rows(1200))]
    some[1100]["split"] = "later"
    with pytest.raises(LorakitError) as error:
        prepare(of_run(written(tmp_path / "a.jsonl", some)))
    assert (error.value.setting, error.value.value) == ("ignore_columns", "later")
    assert error.value.where == "a.jsonl:1101"
