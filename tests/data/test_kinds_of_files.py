"""Content decides what a file is; official splits are used, whatever holds them; what is not read is named."""

import datetime
import json

import pytest

from lorakit.common.errors import LorakitError
from lorakit.data import loading, sources

PAIRS = [{"prompt": f"question {i}?", "completion": f"answer {i}"} for i in range(12)]
TABLE = "prompt,completion\n" + "".join(f"question {i}?,answer {i}\n" for i in range(12))
LINES = [json.dumps(row) for row in PAIRS]


def loaded(path, **settings):
    return loading.load(sources.source(str(path)), **settings)


def first(examples):
    return [m["content"] for m in examples[0].fields["messages"]]


CONTENT = {
    "table.txt": (TABLE, "csv"),
    "semicolons.txt": (TABLE.replace(",", ";"), "csv"),
    "tabs.txt": (TABLE.replace(",", "\t"), "tsv"),
    "no_ending": (TABLE, "csv"),
    "rows.dat": ("\n".join(LINES), "jsonl"),
    "rows.log": (json.dumps(PAIRS), "json"),
    "commas.jsonl": (",\n".join(LINES), "jsonl"),
    "printed.json": ("\n".join(json.dumps(row, indent=1) for row in PAIRS), "json"),
    "by_number.json": (json.dumps({str(i): row for i, row in enumerate(PAIRS)}), "json"),
    "pandas.json": (
        json.dumps(
            {n: {str(i): row[n] for i, row in enumerate(PAIRS)} for n in ("prompt", "completion")}
        ),
        "json",
    ),
    "pandas_split.json": (
        json.dumps(
            {
                "columns": ["prompt", "completion"],
                "index": list(range(12)),
                "data": [[*row.values()] for row in PAIRS],
            }
        ),
        "json",
    ),
}


@pytest.mark.parametrize("name", CONTENT)
def test_content_decides(tmp_path, name):
    content, kind = CONTENT[name]
    (tmp_path / name).write_text(content)
    examples, report = loaded(tmp_path / name)
    assert (report.format, len(examples), first(examples)) == (
        kind,
        12,
        ["question 0?", "answer 0"],
    )


@pytest.mark.parametrize(
    "prose",
    [
        "It rained, and stopped.\nWe went, and came.\nHe saw, and wept.\n",
        "Text, label and answer were all he knew.\nOne, two and three.\nFour, five and six.\n",
        "A line.\nAnother line.\n\nA third one | with a bar.\n",
    ],
)
def test_prose_stays_prose(tmp_path, prose):
    (tmp_path / "prose.txt").write_text(prose)
    assert loaded(tmp_path / "prose.txt")[1].format == "txt"


def test_a_table_for_people_is_refused_by_name(tmp_path):
    (tmp_path / "t.md").write_text("| prompt | completion |\n|---|---|\n| a | b |\n| c | d |\n")
    with pytest.raises(LorakitError, match="a table written in Markdown"):
        loaded(tmp_path / "t.md")


def test_a_header_that_may_be_data_is_said_so(tmp_path):
    (tmp_path / "sms.csv").write_text("ham,see you there\nspam,win now\nham,all right\n")
    with pytest.raises(LorakitError, match=r"taken for the header.*header: false"):
        loaded(tmp_path / "sms.csv")


def test_whole_numbers_with_gaps_stay_whole_in_a_table(tmp_path):
    (tmp_path / "n.csv").write_text("question,answer\nQ0,58.0\nQ1,\nQ2,7.0\n")
    examples, report = loaded(tmp_path / "n.csv")
    assert [e.fields["messages"][-1]["content"] for e in examples] == ["58", "7"]
    assert [r.reason for r in report.rejected] == ["'answer' is empty"]
    (tmp_path / "n.csv").write_text("question,answer\nQ0,58.0\nQ2,7.0\n")  # no gap: as written
    assert first(loaded(tmp_path / "n.csv")[0]) == ["Q0", "58.0"]


# Workbooks


@pytest.fixture
def book(tmp_path):
    """(sheet -> rows) -> a workbook."""
    openpyxl = pytest.importorskip("openpyxl")

    def call(**sheets):
        made = openpyxl.Workbook()
        made.remove(made.active)
        for name, rows in sheets.items():
            page = made.create_sheet(name)
            for row in rows:
                page.append(row)
        made.save(tmp_path / "book.xlsx")
        return tmp_path / "book.xlsx"

    return call


HEAD = ["question", "answer"]


def test_a_day_is_a_date_and_a_time_is_kept(book):
    day, minute = datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 7, 30)
    examples, _ = loaded(book(rows=[HEAD, ["When?", day], ["And when?", minute]]))
    assert [e.fields["messages"][-1]["content"] for e in examples] == [
        "2024-01-02",
        "2024-01-02T07:30:00",
    ]


def test_the_sheet_with_rows_is_read_and_of_several_one_is_named(book):
    assert first(loaded(book(About=[["v1"]], Rows=[HEAD, ["Q", "A"]]))[0]) == ["Q", "A"]
    path = book(One=[HEAD, ["Q", "A"]], Two=[HEAD, ["R", "B"]])
    with pytest.raises(LorakitError, match="several sheets hold rows: One, Two"):
        loaded(path)
    source = sources.source(str(path), {"excel": {"sheet": "Two"}})
    assert first(loading.load(source)[0]) == ["R", "B"]


def test_a_header_that_stands_twice_is_refused(book):
    with pytest.raises(LorakitError, match="'answer' stands twice"):
        loaded(book(Rows=[[*HEAD, "answer"], ["Q", "A", "B"]]))


# Official splits


def rows(start, end):
    return "".join(
        json.dumps({"prompt": f"{i * 7919 % 997} what about {i}?", "completion": f"answer {i}"})
        + "\n"
        for i in range(start, end)
    )


def prepared(folder, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    sets, report = loading.prepare(sources.of_run(str(folder)))
    return {name: len(some) for name, some in sets.items()}, report


@pytest.mark.parametrize("name", ["test", "testing", "holdout", "my_test", "Test"])
def test_rows_held_out_beside_others(tmp_path, name):
    sets, report = prepared(tmp_path, data__jsonl=rows(0, 20), **{f"{name}__jsonl": rows(20, 24)})
    assert sets == {"train": 18, "validation": 2, "test": 4}
    assert "the data's own splits are used: train, test" in report.notes


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation", "eval"])
def test_names_of_the_validation_set(tmp_path, name):
    sets, _ = prepared(tmp_path, train__jsonl=rows(0, 20), **{f"{name}__jsonl": rows(20, 24)})
    assert sets == {"train": 18, "validation": 4, "test": 2}


def test_what_is_of_no_split_is_named(tmp_path):
    sets, report = prepared(
        tmp_path,
        train__jsonl=rows(0, 20),
        test__jsonl=rows(20, 24),
        unsupervised__jsonl=rows(24, 90),
    )
    assert sets == {"train": 18, "validation": 2, "test": 4}
    assert [n for n in report.notes if "unsupervised" in n] == [
        "not read, as other splits are: unsupervised.jsonl"
    ]


def test_test_rows_without_training_rows_are_never_trained_on(tmp_path):
    with pytest.raises(LorakitError, match="test and validation, and none for training"):
        prepared(tmp_path, val__jsonl=rows(0, 20), test__jsonl=rows(20, 30))


def test_official_test_rows_that_repeat_training_rows_stay_test_rows(tmp_path):
    sets, report = prepared(tmp_path, train__jsonl=rows(0, 20), test__jsonl=rows(15, 25))
    assert sets == {"train": 13, "validation": 2, "test": 10}
    assert len(report.rejected) == 5 and "repeats" in report.rejected[0].reason


def test_kaggles_test_rows_have_no_answers(tmp_path):
    sets, report = prepared(
        tmp_path,
        train__csv="id,text,label\n" + "".join(f"{i},text {i},{i % 2}\n" for i in range(20)),
        test__csv="id,text\n" + "".join(f"{i},other {i}\n" for i in range(9)),
        sample_submission__csv="id,label\n1,0\n",
    )
    assert sets == {"train": 16, "validation": 2, "test": 2}
    assert "the official test rows are not used: none of them has an answer" in report.notes


def test_splits_inside_a_json_file_and_a_workbook(tmp_path, book):
    (tmp_path / "d.json").write_text(json.dumps({"train": PAIRS[:9], "test": PAIRS[9:]}))
    sets, _ = loading.prepare(sources.of_run(str(tmp_path / "d.json")))
    assert {n: len(s) for n, s in sets.items()} == {"train": 8, "validation": 1, "test": 3}
    sheet = [["prompt", "completion"], *[[*row.values()] for row in PAIRS]]
    path = book(train=sheet[:10], dev=[sheet[0], *sheet[10:]])
    sets, _ = loading.prepare(sources.of_run(str(path)))
    assert {n: len(s) for n, s in sets.items()} == {"train": 8, "validation": 3, "test": 1}


def test_files_of_different_columns_are_named(tmp_path):
    with pytest.raises(LorakitError, match=r"a\.jsonl: prompt, completion; .*b\.jsonl: text"):
        prepared(tmp_path, a__jsonl=rows(0, 3), b__jsonl='{"text": "t"}\n' * 3)


def test_folds_leave_official_test_rows_alone(tmp_path):
    prepared(tmp_path, train__jsonl=rows(0, 20), test__jsonl=rows(20, 24))
    official = {f"{tmp_path.name}/test.jsonl"}
    found = set()
    for fold in (1, 2, 3):
        sets, report = loading.prepare(sources.of_run(str(tmp_path)), folds=3, fold=fold)
        assert not official & {e.file for some in sets.values() for e in some}
        found |= {e.row for e in sets["test"]}
    assert found == set(range(1, 21))
    assert "the official test rows are set aside: every fold trains and tests on the others" in (
        report.notes
    )


def test_the_order_of_classes_is_kept(tmp_path, base):
    """`datasets` notes names and order of the classes; the head's outputs follow them, and ids are their names."""
    datasets = pytest.importorskip("datasets")
    names = ["zero", "need", "all"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    table = datasets.Dataset.from_dict(
        {
            "text": [f"message {i * 7919 % 997}" for i in range(60)],
            "label": [i % 3 for i in range(60)],
        },
        features=features,
    )
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    for place in ("saved", "rows.parquet"):
        examples, report = loaded(tmp_path / place)
        assert report.classes == names
        assert {e.fields["label"] for e in examples} == set(names)
    import lorakit

    run = lorakit.Run(data=str(tmp_path / "saved"), model=base, task="classify_text")
    assert lorakit.prepare(run).meta["classes"] == names
