"""What a file holds decides how it is read, whatever its ending says; what stands around a table is passed over."""

import json
import zipfile

import pytest

from lorakit.common.errors import LorakitError
from lorakit.data import loading, sources
from lorakit.data.splits import split_of

ROWS = [{"prompt": f"Question {i}?", "completion": f"{i * i}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TURNS = [
    [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]
    for r in ROWS
]


def answers(path, **settings):
    examples, report = loading.load(str(path), **settings)
    return [e.fields["messages"][-1]["content"] for e in examples], report


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", LINES),
        ("lines.json", LINES),
        ("lines.csv", LINES),
        ("array.jsonl", json.dumps(ROWS)),
        ("array.txt", json.dumps(ROWS, indent=2)),
        ("turns.jsonl", "".join(json.dumps(t) + "\n" for t in TURNS)),
        ("turns.json", json.dumps(TURNS)),
        (
            "sep.csv",
            "sep=;\nprompt;completion\n"
            + "".join(f"{r['prompt']};{r['completion']}\n" for r in ROWS),
        ),
        (
            "ends.csv",
            "prompt,completion,,\n" + "".join(f"{r['prompt']},{r['completion']},,\n" for r in ROWS),
        ),
        (
            "title.csv",
            "Report,,\n\nprompt,completion,\n"
            + "".join(f"{r['prompt']},{r['completion']},\n" for r in ROWS),
        ),
        (
            "capitals.csv",
            "Prompt,Completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS),
        ),
        (
            "cell.csv",
            "messages\n" + "".join('"' + json.dumps(t).replace('"', '""') + '"\n' for t in TURNS),
        ),
        ("cell2.csv", "messages\n" + "".join(f'"{t}"\n' for t in TURNS)),
    ],
    ids=lambda x: x if len(x) < 20 else "",
)
def test_read_for_what_it_is(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert answers(tmp_path / name)[0] == ["0", "1", "4", "9", "16"]


def test_prose_stays_prose(tmp_path):
    (tmp_path / "a.txt").write_text("The river rose, as it does.\n[a note]\n{not: json}\n")
    examples, report = loading.load(str(tmp_path / "a.txt"))
    assert (report.format, len(examples)) == ("txt", 3)


def test_one_column_with_commas_has_no_title(tmp_path):
    (tmp_path / "a.csv").write_text("text\nThe tap, broken\nThe well, dry\nThe road, gone\n")
    examples, _ = loading.load(str(tmp_path / "a.csv"))
    assert [e.fields["text"] for e in examples] == [
        "The tap, broken",
        "The well, dry",
        "The road, gone",
    ]


def test_arrow_excel_and_zip(tmp_path):
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS)
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as out,
    ):
        out.write_table(table)
    with (
        pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("README.md", "about")
        archive.writestr("data/rows.jsonl", LINES)
        archive.writestr("__MACOSX/data/._rows.jsonl", "x")
    for name in ("a.arrow", "b.arrow", "c.zip"):
        assert answers(tmp_path / name)[0] == ["0", "1", "4", "9", "16"]
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["My questions", None])
    book.active.append(["prompt", "completion"])
    for i in range(5):
        book.active.append([f"Question {i}?", i * i])
    book.save(tmp_path / "d.xlsx")
    assert answers(tmp_path / "d.xlsx")[0] == ["0", "1", "4", "9", "16"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.json",
            '[{"prompt": "a", "completion": "b"},]',
            "A comma stands before a closing bracket; remove it",
        ),
        ("a.xlsx", "PK", "is no workbook that can be read"),
        ("a.zip", "PK", "cannot be unpacked"),
        ("a.arrow", "ARROW1", "not Arrow, or cut or damaged"),
        (
            "v.csv",
            "v1,v2,,,\nspam,win now,,,\nham,see you,,,\n",
            r"the columns v1, v2 fit no schema",
        ),
        (
            "n.csv",
            "1,2\n3,4\n",
            r"The first record looks like data.*format: \{csv: \{header: true\}\}",
        ),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(LorakitError, match=words):
        loading.load(str(tmp_path / name))


# Official splits


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("test/a.csv", "test"),
        ("my_dev.jsonl", "validation"),
        ("val.csv", "validation"),
        ("train/test_of_strength.csv", "train"),
        ("rows.csv", None),
        ("trainer.csv", None),
        ("train_and_test.csv", None),
    ],
)
def test_names_of_splits(path, split):
    assert split_of(path) == split


def test_the_splits_of_a_folder_are_kept(tmp_path):
    for name, span in (
        ("train", range(20)),
        ("validation", range(20, 25)),
        ("test", range(25, 30)),
    ):
        lines = (
            json.dumps({"prompt": f"Question {i}?", "completion": str(i)}) + "\n" for i in span
        )
        (tmp_path / f"{name}-00000-of-00001.jsonl").write_text("".join(lines))
    (tmp_path / "README.md").write_text("about")
    sets, report = loading.prepare(sources.of_run(str(tmp_path)))
    found = {
        n: sorted(int(e.fields["messages"][-1]["content"]) for e in s) for n, s in sets.items()
    }
    assert found == {
        "train": [*range(20)],
        "validation": [*range(20, 25)],
        "test": [*range(25, 30)],
    }
    assert "the data's own splits are used: train, validation, test" in report.notes


def test_the_splits_of_a_saved_dictionary_are_kept(tmp_path):
    import datasets

    made = {"train": range(20), "test": range(20, 26)}
    datasets.DatasetDict(
        {
            name: datasets.Dataset.from_list(
                [{"prompt": f"Question {i}?", "completion": str(i)} for i in span]
            )
            for name, span in made.items()
        }
    ).save_to_disk(str(tmp_path / "saved"))
    sets, _ = loading.prepare(sources.of_run(str(tmp_path / "saved")))
    assert {int(e.fields["messages"][-1]["content"]) for e in sets["test"]} == {*range(20, 26)}
    assert report_sizes(sets) == {"train": 18, "validation": 2, "test": 6}


def report_sizes(sets):
    return {name: len(rows) for name, rows in sets.items()}
