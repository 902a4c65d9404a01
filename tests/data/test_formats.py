"""Every row of a file comes back, as an example or as a rejected row that says where it stands and why."""

import contextlib
import csv
import datetime
import decimal
import gzip
import io
import json
import math
import os
import re
import shutil
import struct
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.data import formats, sources
from lorakit.data import loading as data
from lorakit.data.example import Example, Rejected
from lorakit.data.formats import csv as csv_format
from lorakit.data.formats import folder, jsonl, parallel, parquet, saved, tsv, txt
from lorakit.data.formats import json as json_format

DATA = ROOT / "data"
SHIPPED = sorted(
    p
    for folder in (DATA, DATA / "examples")
    for p in folder.iterdir()
    if p.name not in ("README.md", "messy.jsonl")
    and any(p.suffix in m.SUFFIXES for m in registry.modules("formats").values())
)


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(found):
    """(row, fields or reason) of each row."""
    return [(row.row, row.fields if isinstance(row, Example) else row.reason) for row in found]


def read(module, folder, content, **options):
    name = "f" + module.SUFFIXES[0]
    found = list(module.read(file(folder, name, content), **options))
    assert {row.file for row in found} <= {name}
    return rows(found)


# JSON


@pytest.mark.parametrize(
    "content",
    [
        [{"a": "x", "b": 1}, {"a": "y", "b": 2}],
        {"a": ["x", "y"], "b": [1, 2]},
        {"data": [{"a": "x", "b": 1}, {"a": "y", "b": 2}]},
        {"version": "1.0", "rows": [{"a": "x", "b": 1}, {"a": "y", "b": 2}], "count": 2},
    ],
    ids=["array of objects", "object of arrays", "array inside", "array beside other things"],
)
def test_json_in_each_form(content, tmp_path):
    expected = [(1, {"a": "x", "b": 1}), (2, {"a": "y", "b": 2})]
    assert read(json_format, tmp_path, json.dumps(content)) == expected
    assert (
        read(json_format, tmp_path, b"\xef\xbb\xbf" + json.dumps(content, indent=2).encode())
        == expected
    )


@pytest.mark.parametrize("wrap", [list, lambda rows: {"data": rows}], ids=["array", "array inside"])
def test_json_rows_that_are_no_objects_are_named(wrap, tmp_path):
    content = json.dumps(wrap([{"a": "x"}, "y", {"a": "z"}, None, [1]]))
    assert read(json_format, tmp_path, content) == [
        (1, {"a": "x"}),
        (2, "expected an object {…}, found str"),
        (3, {"a": "z"}),
        (4, "expected an object {…}, found NoneType"),
        (5, "expected an object {…}, found list"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"a": 1},\n {"b": }]', r"f\.json:2: broken JSON: Expecting value \(column 8\)"),
        (
            '{"a": 1}\n{"a": 2} 3\n',
            r"f\.json:2: broken JSON: .*One object a line\? Then name the file \.jsonl",
        ),
        ("", r"f\.json: the file is empty"),
        ('"words"', "expected an array of rows, found str"),
        ('{"a": 1}', "expected an array of rows, found dict"),
        ('{"a": [1, 2], "b": [1]}', r"unequal lengths: \{'a': 2, 'b': 1\}"),
        (
            '{"train": [{"a": 1}], "test": [{"a": 1}], "v": 1}',
            r"several lists inside \(train, test\)",
        ),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "broken JSON: Exceeds the limit"),
        (b'[{"a": "caf\xe9"}]', "not UTF-8 at character 12 .*; save the file as UTF-8"),
    ],
)
def test_unusable_json_says_what_and_where(content, words, tmp_path):
    with pytest.raises(LorakitError, match=words):
        read(json_format, tmp_path, content)


# JSON Lines


def test_jsonl_numbers_rows_by_line(tmp_path):
    content = '\ufeff{"a": 1}\r\n\n  \n{"a": "\u2028\u0085"}\n{"a":\r3}'
    assert read(jsonl, tmp_path, content) == [
        (1, {"a": 1}),
        (4, {"a": "\u2028\u0085"}),
        (5, {"a": 3}),
    ]


def test_bad_lines_are_named_and_the_others_kept(tmp_path):
    lines = [
        b'{"a": 1}',
        b'{"a": }',
        b"[1]",
        b'{"a": "caf\xe9"}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1} {"a": 2}',
        b'{"a": 7}',
    ]
    found = read(jsonl, tmp_path, b"\n".join(lines))
    assert [row for row, _ in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    (_, first), *bad, (_, last) = found
    assert first == {"a": 1} and last == {"a": 7}
    assert [reason for _, reason in bad[:4]] == [
        "broken JSON: Expecting value (column 7)",
        "expected an object {…}, found list",
        'not UTF-8 at character 11 (Windows-1252 would read …{"a": "café"}…); save the file as UTF-8',
        "broken JSON: nested too deeply",
    ]
    assert (
        bad[4][1].startswith("broken JSON: Exceeds the limit")
        and "Extra data (column 10)" in bad[5][1]
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_says_the_encoding(encoding, tmp_path):
    assert read(jsonl, tmp_path, '{"a": "é "}\n{"a": 2}\n'.encode(encoding)) == [
        (1, {"a": "é "}),
        (2, {"a": 2}),
    ]


# Comma-separated values

TABLE = [["prompt", "completion"], ["How much, at least?", 'He said "15".'], ["two\nlines", ""]]
ROWS = [
    (2, {"prompt": "How much, at least?", "completion": 'He said "15".'}),
    (3, {"prompt": "two\nlines", "completion": ""}),
]


def table(rows, **dialect):
    out = io.StringIO(newline="")
    csv.writer(out, **dialect).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_finds_delimiter_line_ends_and_encoding(delimiter, end, encoding, tmp_path):
    content = table(TABLE, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    assert read(csv_format, tmp_path, content.encode(encoding)) == ROWS


def test_csv_keeps_what_is_inside_a_cell_and_numbers_rows_by_line(tmp_path):
    content = 'a,b\r\n"x\ny\r\nz","\r"\n\n   \n\u2028 \x85,\x00\x0b\x0c\x1c\ufeff\n"say ""no""",5" pipe\n,'
    assert read(csv_format, tmp_path, content) == [
        (2, {"a": "x\ny\r\nz", "b": "\r"}),
        (8, {"a": "\u2028 \x85", "b": "\x00\x0b\x0c\x1c\ufeff"}),
        (9, {"a": 'say "no"', "b": '5" pipe'}),
        (10, {"a": "", "b": ""}),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a;b\n1,5;2,5\n3,5;4,5\n", {"a": "1,5", "b": "2,5"}),
        ("text\nRain, wind\nNo, never, she said\n", {"text": "Rain, wind"}),
        ("text\nRain, wind\nSun, heat\n", {"text": "Rain, wind"}),
        ("text\nRain\n", {"text": "Rain"}),
        ("text ,\tlabel\nRain,wet\n", {"text": "Rain", "label": "wet"}),
        ('text,label\n"Rain; wind",1\n"Sun; heat",0\n', {"text": "Rain; wind", "label": "1"}),
        ('text, label\n"Rain, wind", "wet, cold"\n', {"text": "Rain, wind", "label": "wet, cold"}),
        ("a|b\nx,y|z\n", {"a": "x,y", "b": "z"}),
        (
            ",text,label\n0,Rain,wet\n1,Sun,dry\n",
            {"Unnamed: 0": "0", "text": "Rain", "label": "wet"},
        ),
    ],
    ids=[
        "decimal commas",
        "one column",
        "a comma in each",
        "one word",
        "blanks in names",
        "semicolons in prose",
        "blanks before quotes",
        "bars",
        "pandas",
    ],
)
def test_csv_dialects_in_the_wild(content, expected, tmp_path):
    (_, fields), *_ = read(csv_format, tmp_path, content)
    assert fields == expected


@pytest.mark.parametrize(
    "first",
    [
        "Good soil,1",
        "Good soil,",
        "Good soil,2024-05-01",
        "Good soil,-.5e3",
        "Good soil," + "x" * 65,
        "Good soil,12:30",
        ",Good soil",
    ],
)
def test_csv_without_a_header_numbers_its_columns(first, tmp_path):
    words = first.split(",")
    expected = [(1, {"1": words[0], "2": words[1]}), (2, {"1": "Bad", "2": "0"})]
    assert read(csv_format, tmp_path, f"{first}\nBad,0\n") == expected
    assert read(csv_format, tmp_path, f"{first}\nBad,0\n", header=False) == expected


def test_csv_is_told_whether_there_is_a_header(tmp_path):
    assert read(csv_format, tmp_path, "2019,2020\n1,2\n", header=True) == [
        (2, {"2019": "1", "2020": "2"})
    ]
    assert read(csv_format, tmp_path, "yes,no\nno,yes\n", header=False) == [
        (1, {"1": "yes", "2": "no"}),
        (2, {"1": "no", "2": "yes"}),
    ]
    assert read(csv_format, tmp_path, "a:b,c\n1,2:3,4\n", delimiter=":") == [
        (2, {"a": "1,2", "b,c": "3,4"})
    ]


@pytest.mark.parametrize("content", ["", "\n", "\ufeff", "a,b\n", "a,b", '"a","b"\r\n\r\n'])
def test_csv_without_rows_yields_nothing(content, tmp_path):
    assert read(csv_format, tmp_path, content) == []


def test_bad_csv_records_are_named_and_the_others_kept(tmp_path):
    content = b'a,b\n1,2,3\n4\n"He said "no" to me",5\ncaf\xe9,6\n7,8\n'
    assert read(csv_format, tmp_path, content) == [
        (2, "expected 2 cells, found 3"),
        (3, "expected 2 cells, found 1"),
        (4, 'a quote in the middle of a quoted cell; inside quotes a quote is written twice: ""'),
        (5, "not UTF-8 at character 4 (Windows-1252 would read …café,6…); save the file as UTF-8"),
        (6, {"a": "7", "b": "8"}),
    ]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            "text,label,text\na,b,c\n",
            {},
            "f.csv: the header is unusable: 'text' stands twice; .* header: false",
        ),
        ("text,\na,b\n", {"header": True}, "f.csv: the header is unusable: column 2 has no name"),
        (b"caf\xe9,label\na,b\n", {}, "f.csv: the header is not UTF-8 at character 4"),
        ('a,b\n1,2\n3,"x\n4,5\n', {}, "f.csv:3: a quote is opened here and never closed"),
        ('a,b\n"1\n2","x\n4,5\n', {}, "f.csv:3: a quote is opened here and never closed"),
        ('a,b\n1,2\n3,"', {}, "f.csv:3: a quote is opened here and never closed"),
        ("a,b\n", {"delimiter": ", "}, "delimiter=', ' is not one character"),
        ("a,b\n", {"delimiter": '"'}, "delimiter='\"' is not one character"),
        ("a,b\n", {"delimiter": 7}, "delimiter=7 is not one character"),
        ("a,b\n", {"header": "no"}, "header='no' is neither true nor false"),
        ("a,b\n", {"header": 0}, "header=0 is neither true nor false"),
    ],
)
def test_unusable_csv_says_what_and_where(content, options, words, tmp_path):
    with pytest.raises(LorakitError, match=words):
        read(csv_format, tmp_path, content, **options)


@pytest.mark.parametrize("ends", [b"\n", b""], ids=["many lines", "one line"])
def test_an_open_quote_does_not_swallow_the_file(ends, tmp_path, monkeypatch):
    for module in (formats, csv_format):
        monkeypatch.setattr(module, "FIELD", 10_000)
    packed = gzip.compress(b'a,b\n1,2\n3,"x\n' + (b"word " * 20 + ends) * 100_000)
    with pytest.raises(
        LorakitError, match=r"f.csv:[34]: a (quote is opened here|line of more than)"
    ):
        read(csv_format, tmp_path, packed[:-100])  # whose end would be another error


def test_long_cells_are_read_and_no_limit_is_lowered(tmp_path):
    cell = "water " * 30_000  # csv's own limit is 131,072 characters
    for limit in (131_072, 10**9):
        csv.field_size_limit(limit)
        assert read(csv_format, tmp_path, f'a,b\n1,"{cell}"\n') == [(2, {"a": "1", "b": cell})]
        assert csv.field_size_limit() >= max(limit, formats.FIELD)


# Tab-separated values


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('"A" is good\t1\nsaid "x" here\t0\n', [('"A" is good', "1"), ('said "x" here', "0")]),
        ('"whole"\t1\n"say ""x"""\t0\n', [("whole", "1"), ('say "x"', "0")]),
        ('"B" is bad\t1\n"whole"\t0\n', [('"B" is bad', "1"), ("whole", "0")]),
        ('"never closed\t1\nnext\t0\n', [('"never closed', "1"), ("next", "0")]),
        (
            '"open\t1\nnext\t0\nclose"\t0\n"o\t1\n',
            [('"open', "1"), ("next", "0"), ('close"', "0"), ('"o', "1")],
        ),
        ('one\t1\ntwo"\t"0\n', [("one", "1"), ('two"', '"0')]),
        ('"a\nb"\t1\nx\t"0\n\n0"\n', [("a\nb", "1"), ("x", "0\n\n0")]),
        ('"a\tb"\t1\n', [("a\tb", "1")]),
        ('7\n"a\nb"\n', [("7",), ("a\nb",)]),
    ],
)
def test_quotes_in_tsv_are_data_unless_they_enclose_a_cell(content, expected, tmp_path):
    found = read(tsv, tmp_path, content)
    assert [tuple(fields.values()) for _, fields in found] == expected
    header = "\t".join(["text", "label"][: len(expected[0])])
    assert [
        tuple(fields.values()) for _, fields in read(tsv, tmp_path, f"{header}\n{content}")
    ] == expected


def test_tsv_rows_keep_their_lines_after_a_stray_quote(tmp_path):
    content = 'text\tlabel\n"a\nb"\t1\n"open\t0\nlast\t1\nshort\n\t\n'
    assert read(tsv, tmp_path, content) == [
        (2, {"text": "a\nb", "label": "1"}),
        (4, {"text": '"open', "label": "0"}),
        (5, {"text": "last", "label": "1"}),
        (6, "expected 2 cells, found 1"),
        (7, {"text": "", "label": ""}),
    ]


# Plain text


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("one\n two \nthree", {}, [(1, "one"), (2, " two "), (3, "three")]),
        (
            "one\r\ntwo\rthree\x85\u2028\x00\n",
            {},
            [(1, "one"), (2, "two"), (3, "three\x85\u2028\x00")],
        ),
        ("\n\none\ntwo\n\n", {}, [(3, "one"), (4, "two")]),
        ("one\ntwo\n\n \t\nthree\n", {}, [(1, "one\ntwo"), (5, "three")]),
        ("one\r\n\r\ntwo", {}, [(1, "one"), (3, "two")]),
        ("one\ntwo\n\nthree\n", {"sample": "line"}, [(1, "one"), (2, "two"), (4, "three")]),
        ("one\ntwo\n", {"sample": "paragraph"}, [(1, "one\ntwo")]),
        ("one\ntwo\n\nthree\n", {"sample": "file"}, [(1, "one\ntwo\n\nthree\n")]),
        ("one\ntwo\n<|endoftext|>\n\nthree\n<|endoftext|>", {}, [(1, "one\ntwo"), (5, "three")]),
        (
            "one\n---\n\n two\nthree---four",
            {"separator": "---"},
            [(1, "one"), (4, "two\nthree"), (5, "four")],
        ),
        (
            "one\n--\ntwo\n--\nthree",
            {"separator": "\n--\n"},
            [(1, "one"), (3, "two"), (5, "three")],
        ),
        ("one<|endoftext|>two", {"sample": "line"}, [(1, "one<|endoftext|>two")]),
        ("\ufeff\n \n", {}, []),
        ("", {"sample": "file"}, []),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1024**2])
def test_text_in_samples(content, options, expected, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(txt, "CHUNK", chunk)
    assert read(txt, tmp_path, content, **options) == [
        (row, {"text": words}) for row, words in expected
    ]


def test_text_that_is_not_utf8_costs_one_sample(tmp_path):
    assert read(txt, tmp_path, b"one\ncaf\xe9\nthree") == [
        (1, {"text": "one"}),
        (2, "not UTF-8 at character 4 (Windows-1252 would read …café…); save the file as UTF-8"),
        (3, {"text": "three"}),
    ]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            "x",
            {"sample": "lines"},
            "there is no sample='lines'; did you mean 'line'.*auto, line, paragraph, file",
        ),
        ("x", {"separator": ""}, "separator='' is no text"),
        ("x", {"separator": 7}, "separator=7 is no text"),
        (
            "x",
            {"separator": "-", "sample": "file"},
            "sample='file' and separator='-' exclude each other",
        ),
        ("x\n" + "y" * 101, {}, "f.txt:2: a line of more than .*; set sample: file"),
        (
            "x\n\n" + "y\n" * 60,
            {"sample": "paragraph"},
            "f.txt:53: a paragraph of more than .*; set sample: file",
        ),
        (
            "x--" + "y\n" * 60,
            {"separator": "--"},
            "f.txt:1: a sample without '--' of more than .*; set sample: file",
        ),
    ],
)
def test_unusable_text_says_what_and_where(content, options, words, tmp_path, monkeypatch):
    for module in (formats, txt):
        monkeypatch.setattr(module, "FIELD", 100)
    with pytest.raises(LorakitError, match=words):
        read(txt, tmp_path, content, **options)


def test_a_line_of_just_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FIELD", 100)
    assert read(txt, tmp_path, "y" * 99 + "\nz") == [(1, {"text": "y" * 99}), (2, {"text": "z"})]


# Parquet


def parquet_file(path, columns, **options):
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def test_parquet_values_become_what_json_can_carry(tmp_path):
    berlin = datetime.timezone(datetime.timedelta(hours=2))
    path = parquet_file(
        tmp_path / "f.parquet",
        {
            "text": ["Rain\x00 é", None],
            "number": [7, None],
            "share": [0.5, math.nan],
            "yes": [True, None],
            "messages": [[{"role": "user", "content": "Hi", "weight": math.nan}], []],
            "day": [datetime.date(2024, 5, 2), None],
            "hour": [datetime.time(7, 30), None],
            "instant": pa.array([1_714_635_000_000_000_001, None], pa.timestamp("ns")),
            "zoned": pa.array(
                [datetime.datetime(2024, 5, 2, 7, 30, tzinfo=berlin), None],
                pa.timestamp("s", "+02:00"),
            ),
            "price": [decimal.Decimal("3.50"), None],
            "length": [datetime.timedelta(minutes=90), None],
            "raw": [b"caf\xc3\xa9", None],
            "kind": pa.array(["a", None]).dictionary_encode(),
            "pairs": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "image": [{"bytes": b"\x89PNG", "path": None}, None],
            "images": [[{"bytes": b"\xff", "path": "a.jpg"}], None],
        },
    )
    first, second = rows(parquet.read(path))
    assert first == (
        1,
        {
            "text": "Rain\x00 é",
            "number": 7,
            "share": 0.5,
            "yes": True,
            "messages": [{"role": "user", "content": "Hi", "weight": None}],
            "day": "2024-05-02",
            "hour": "07:30:00",
            "instant": "2024-05-02T07:30:00.000000001",
            "zoned": "2024-05-02T07:30:00+02:00",
            "price": "3.50",
            "length": "1:30:00",
            "raw": "café",
            "kind": "a",
            "pairs": [["k", 1]],
            "image": {"bytes": b"\x89PNG", "path": None},
            "images": [{"bytes": b"\xff", "path": "a.jpg"}],
        },
    )
    assert second == (2, dict.fromkeys(first[1]) | {"messages": []})


def test_bad_parquet_values_are_named_and_the_other_rows_kept(tmp_path):
    path = parquet_file(
        tmp_path / "f.parquet",
        {"raw": [b"a", b"\xff", b"c"], "day": pa.array([0, 0, 2**60], pa.timestamp("us"))},
    )
    good, *bad = rows(parquet.read(path))
    assert good == (1, {"raw": "a", "day": "1970-01-01T00:00:00"})
    assert bad[0][0] == 2 and bad[0][1].startswith(
        "column 'raw': 'utf-8' codec can't decode byte 0xff"
    )
    assert bad[1] == (3, "column 'day': date value out of range")


def test_parquet_gives_classes_their_names(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["dry", "wet"])})
    table = datasets.Dataset.from_dict({"label": [1, 0, -1, None]}, features=features).data.table
    wrong = table.set_column(0, table.schema.field(0), pa.array([1, 7, 0, 1]))
    assert rows(parquet.read(parquet_file(tmp_path / "f.parquet", table))) == [
        (1, {"label": "wet"}),
        (2, {"label": "dry"}),
        (3, {"label": None}),
        (4, {"label": None}),
    ]
    found = rows(parquet.read(parquet_file(tmp_path / "f.parquet", wrong)))
    assert found[1] == (2, "column 'label': list index out of range") and found[3] == (
        4,
        {"label": "wet"},
    )


def test_parquet_is_read_in_batches(tmp_path):
    path = parquet_file(tmp_path / "f.parquet", {"n": list(range(1000))}, row_group_size=300)
    assert rows(parquet.read(path)) == [(n + 1, {"n": n}) for n in range(1000)]


def parquet_bytes():
    out = io.BytesIO()
    pq.write_table(pa.table({"a": ["x", "y"] * 500}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: b"", "f.parquet: not Parquet, or cut or damaged"),
        (lambda: parquet_bytes()[:-40], "f.parquet: not Parquet, or cut or damaged"),
        (
            lambda: parquet_bytes()[:4] + bytes(20) + parquet_bytes()[24:],
            "f.parquet: not Parquet, or cut or damaged",
        ),
        (
            lambda: gzip.compress(parquet_bytes())[:-40],
            "f.parquet: the gzip file is cut or damaged",
        ),
        (lambda: gzip.compress(parquet_bytes()[:-40]), "f.parquet: not Parquet, or cut or damaged"),
        (lambda: b"a,b\n1,2\n", "f.parquet: not Parquet, or cut or damaged"),
        (lambda: b"PK\x03\x04 and more", "f.parquet: is a ZIP archive"),
        (
            lambda: b"version https://git-lfs.github.com/spec/v1\n",
            "f.parquet: is a Git LFS pointer",
        ),
    ],
    ids=["empty", "cut", "damaged", "cut gzip", "gzip of a cut", "csv", "zip", "pointer"],
)
def test_unusable_parquet_says_what_and_where(content, words, tmp_path):
    with pytest.raises(LorakitError, match=words):
        list(parquet.read(file(tmp_path, "f.parquet", content())))


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1])] * 3, names=["a", "b", "a"])
    with pytest.raises(LorakitError, match="f.parquet: several columns are named 'a'"):
        list(parquet.read(parquet_file(tmp_path / "f.parquet", table)))


# What datasets saved


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory):
    """A folder of two splits, a folder of one, and a table without."""
    folder = tmp_path_factory.mktemp("saved")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["dry", "wet"]),
            "image": datasets.Image(),
        }
    )
    image = {"bytes": b"no image at all", "path": None}
    columns = {"text": ["aa", "bb"], "label": [0, 1], "image": [image, None]}
    train = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": train, "test": train.select([1])}).save_to_disk(folder / "two")
    datasets.DatasetDict({"rain": train}).save_to_disk(folder / "one")
    datasets.DatasetDict({"rain": train, "sun": train}).save_to_disk(folder / "other")
    train.select([1, 0]).with_format("numpy", columns=["label"]).save_to_disk(folder / "table")
    return folder


def test_saved_rows_come_back_undecoded(saved_folder):
    image = {"bytes": b"no image at all", "path": None}
    first = {"text": "aa", "label": "dry", "image": image}
    second = {"text": "bb", "label": "wet", "image": None}
    assert list(saved.read(saved_folder / "two")) == [
        Example(first, "two/train", 1),
        Example(second, "two/train", 2),
    ]
    assert list(saved.read(saved_folder / "two", split="test")) == [Example(second, "two/test", 1)]
    assert list(saved.read(saved_folder / "one")) == [
        Example(first, "one/rain", 1),
        Example(second, "one/rain", 2),
    ]
    assert list(saved.read(saved_folder / "table")) == [
        Example(second, "table", 1),
        Example(first, "table", 2),
    ]


def test_saved_folders_are_known_and_list_their_files(saved_folder):
    assert [saved.takes(saved_folder / name) for name in ("two", "table", "two/test", ".")] == [
        True,
        True,
        True,
        False,
    ]
    arrow = "data-00000-of-00001.arrow"
    assert saved.files(saved_folder / "two") == [saved_folder / "two" / "train" / arrow]
    assert saved.files(saved_folder / "two", split="test") == [
        saved_folder / "two" / "test" / arrow
    ]
    assert saved.files(saved_folder / "table") == [saved_folder / "table" / arrow]


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("two", "tset", r"two: has no split 'tset'; did you mean 'test'\? \(splits: train, test\)"),
        ("other", None, r"other: has no split 'train'; name one, .* \(splits: rain, sun\)"),
        ("table", "train", "table: has no splits; leave split='train' away"),
        (".", None, "is no folder that `save_to_disk` wrote"),
    ],
)
def test_a_split_that_is_not_there_lists_those_that_are(name, split, words, saved_folder):
    for function in (lambda *a, **k: list(saved.read(*a, **k)), saved.files):
        with pytest.raises(LorakitError, match=words):
            function(saved_folder / name, split=split)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data-00000-of-00001.arrow", lambda content: content[: len(content) // 2]),
        ("data-00000-of-00001.arrow", lambda content: b""),
        (
            "data-00000-of-00001.arrow",
            lambda content: content.replace(
                struct.pack("<3i", 0, 2, 4), struct.pack("<3i", 0, 2**30, 2**31 - 1)
            ),
        ),
        ("data-00000-of-00001.arrow", None),
        ("state.json", lambda content: b"{"),
        ("state.json", lambda content: b"[]"),
        ("dataset_info.json", lambda content: b"[" * 100_000),
        ("dataset_info.json", lambda content: b'{"features": {"text": {"_type": "Nothing"}}}'),
    ],
    ids=[
        "cut",
        "empty",
        "offsets",
        "missing",
        "no JSON",
        "other JSON",
        "deep JSON",
        "unknown feature",
    ],
)
def test_a_damaged_saved_folder_is_refused(name, damage, saved_folder, tmp_path):
    shutil.copytree(saved_folder / "table", tmp_path / "table")
    content = (tmp_path / "table" / name).read_bytes()
    (tmp_path / "table" / name).unlink()
    if damage:
        assert damage(content) != content
        (tmp_path / "table" / name).write_bytes(damage(content))
    with pytest.raises(LorakitError, match="table.*(incomplete or damaged|write the folder again)"):
        list(saved.read(tmp_path / "table"))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"splits": 3}', b"\xff"])
def test_damaged_lists_of_splits_are_refused(content, tmp_path):
    file(tmp_path, "dataset_dict.json", content)
    with pytest.raises(LorakitError, match="dataset_dict.json: .*write the folder again"):
        list(saved.read(tmp_path))


# A folder


@pytest.fixture
def tree(tmp_path, saved_folder):
    """Files of each kind, at several depths, in no order."""
    top = tmp_path / "reports"
    for name, content in {
        "b.jsonl": '{"a": 2}\n\n[]\n',
        "a/z/deep.CSV.GZ": gzip.compress(b"a,b\n3,x\n"),
        "a/y.txt": "one\n\ntwo",
        "README.md": "# about",
        "a/LICENSE.txt": "all rights",
        "photo.jpg": b"\xff\xd8",
        "Makefile": "all:",
        ".hidden.jsonl": "{",
        ".git/x.jsonl": "{",
        "a/z/empty.tsv": "",
        "c.csv": "a;b\n4;y\n",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        file(top, name, content)
    parquet_file(top / "a" / "x.parquet", {"a": [1]})
    shutil.copytree(saved_folder / "table", top / "d")
    return top


def test_a_folder_reads_each_file_in_its_own_format(tree):
    found = [
        (row.where, row.fields if isinstance(row, Example) else row.reason)
        for row in folder.read(tree)
    ]
    image = {"bytes": b"no image at all", "path": None}
    assert found == [
        ("reports/a/x.parquet:1", {"a": 1}),
        ("reports/a/y.txt:1", {"text": "one"}),
        ("reports/a/y.txt:3", {"text": "two"}),
        ("reports/a/z/deep.CSV.GZ:2", {"a": "3", "b": "x"}),
        ("reports/b.jsonl:1", {"a": 2}),
        ("reports/b.jsonl:3", "expected an object {…}, found list"),
        ("reports/c.csv:2", {"a": "4", "b": "y"}),
        ("reports/d:1", {"text": "bb", "label": "wet", "image": None}),
        ("reports/d:2", {"text": "aa", "label": "dry", "image": image}),
    ]
    assert [str(f.relative_to(tree)) for f in folder.files(tree)] == [
        "a/x.parquet",
        "a/y.txt",
        "a/z/deep.CSV.GZ",
        "a/z/empty.tsv",
        "b.jsonl",
        "c.csv",
        "d/data-00000-of-00001.arrow",
    ]


def test_a_folder_is_named_after_itself(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert {row.file for row in folder.read(".")} == {row.file for row in folder.read(tree)}
    assert [row.where for row in folder.read("../reports/a/z/")] == ["z/deep.CSV.GZ:2"]


def test_a_folder_passes_options_on(tree):
    found = rows(folder.read(tree / "a", options={"txt": {"sample": "file"}}))
    assert found[1] == (1, {"text": "one\n\ntwo"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (1, "options=1 of a folder"),
        ({"txt": 1}, "options={'txt': 1} of a folder"),
        ({"text": {}}, "there is no format 'text'; did you mean 'txt'"),
        (
            {"txt": {"sampel": "file"}},
            "options of txt: got an unexpected keyword argument 'sampel'",
        ),
    ],
)
def test_options_that_no_format_has_are_refused(options, words, tree):
    for function in (folder.files, lambda *a, **k: list(folder.read(*a, **k))):
        with pytest.raises(LorakitError, match=words):
            function(tree, options=options)


def test_what_folders_are_taken(tree, tmp_path):
    assert [
        folder.takes(p) for p in (tree, tree / "a", tree / "d", tree / "c.csv", tmp_path / "none")
    ] == [True, True, False, False, False]


def test_links_in_a_circle_are_read_once(tmp_path):
    file(tmp_path, "a.jsonl", '{"a": 1}\n')
    (tmp_path / "b").mkdir()
    for name, target in (
        ("b/up", tmp_path),
        ("b/self", tmp_path / "b" / "self"),
        ("c", tmp_path / "b"),
    ):
        (tmp_path / name).symlink_to(target)
    assert [row.fields for row in folder.read(tmp_path)] == [{"a": 1}]
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LorakitError, match=r"gone\.jsonl: cannot be read \(No such file"):
        list(folder.read(tmp_path))


def test_a_folder_without_rows_says_what_it_holds(tmp_path):
    with pytest.raises(LorakitError, match=r"it has none; known endings: .*\.jsonl"):
        list(folder.read(tmp_path))
    for name in ("a.mp4", "b.rar", "Makefile", "README.md"):
        file(tmp_path, name, "x")
    with pytest.raises(LorakitError, match=r"it has \.md, \.mp4, \.rar, Makefile; known endings: "):
        list(folder.read(tmp_path))
    with pytest.raises(LorakitError, match=r"a\.mp4: is no folder"):
        list(folder.read(tmp_path / "a.mp4"))


def test_a_name_that_is_no_text_can_be_written_down(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).write_text('{"a": 1}\n')
    except OSError:
        pytest.skip("this file system takes no such names")
    assert [row.file for row in folder.read(tmp_path)] == [f"{tmp_path.name}/caf?.jsonl"]


# Parallel text


def test_parallel_lines_become_pairs(tmp_path, monkeypatch):
    path = file(tmp_path, "t.eng", "Rain. \r\n\nSun\x85\u2028\x0b!\n \nEnd")
    other = file(tmp_path, "t.deu", b"Regen.\nx\nSonne\rda!\nleer\ncaf\xe9\n")
    expected = [
        (1, {"source": "Rain. ", "target": "Regen."}),
        (2, "the source is empty"),
        (3, {"source": "Sun\x85\u2028\x0b!", "target": "Sonne\rda!"}),
        (4, "the source is empty"),
        (
            5,
            "the target is not UTF-8 at character 4 (Windows-1252 would read …café…); save the file as UTF-8",
        ),
    ]
    assert (
        rows(parallel.read(path, target="t.deu"))
        == rows(parallel.read(path, target=str(other)))
        == expected
    )
    assert {row.file for row in parallel.read(path, target="t.deu")} == {"t.eng"}
    assert parallel.files(path, target="t.deu") == [path, other]
    monkeypatch.chdir(tmp_path)
    assert rows(parallel.read("t.eng", target="t.deu")) == expected


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a\nb\nc\n", "x\n", "t.eng: has 3 lines and t.deu 1;"),
        ("a\n", "x\ny\nz", "t.eng: has 1 lines and t.deu 3;"),
        ("", "x\n", "t.eng: has 0 lines and t.deu 1;"),
        (gzip.compress(b"a\n" * 9000, mtime=0)[:-9], "x\n" * 9000, "t.eng: the gzip file is cut"),
        ("x\n" * 9000, gzip.compress(b"a\n" * 9000, mtime=0)[:-9], "t.deu: the gzip file is cut"),
        (
            "a\ud800".encode("utf-16", "surrogatepass"),
            "x\n",
            "t.eng: begins with the mark of UTF-16 and is not",
        ),
    ],
)
def test_unequal_or_damaged_parallel_files_are_refused(source, target, words, tmp_path):
    file(tmp_path, "t.deu", target)
    with pytest.raises(LorakitError, match=words):
        list(parallel.read(file(tmp_path, "t.eng", source), target="t.deu"))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("t.fra", "t.fra: no such file, neither in .* nor beside .*t.eng"),
        ("t.eng", "is both source and target"),
        ("", "target='' is not the name of a file"),
        (7, "target=7 is not the name of a file"),
    ],
)
def test_a_target_that_cannot_be_is_refused(target, words, tmp_path):
    path = file(tmp_path, "t.eng", "a\n")
    for function in (parallel.files, lambda *a, **k: list(parallel.read(*a, **k))):
        with pytest.raises(LorakitError, match=words):
            function(path, target=target)


# Any file

TEXTS = {
    "json": '[{"a": "é"}]',
    "jsonl": '{"a": "é"}\n',
    "csv": "a,b\né,1\n",
    "tsv": "a\tb\né\t1\n",
    "txt": "é\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_gzip_is_unpacked_and_a_cut_one_refused(name, tmp_path):
    module, packed = registry.load("formats", name), gzip.compress(TEXTS[name].encode())
    assert read(module, tmp_path, packed) == read(module, tmp_path, TEXTS[name]) != []
    for bad in (
        packed[:-4],
        packed[:12],
        packed[:-8] + bytes(8),
        packed[:15] + b"\xff" * 9 + packed[24:],
    ):
        with pytest.raises(
            LorakitError,
            match=rf"f\.{name}: the gzip file is cut or damaged .*; download or write it",
        ):
            read(module, tmp_path, bad)


def test_gzip_of_parquet_is_unpacked(tmp_path):
    assert rows(parquet.read(file(tmp_path, "f.parquet.gz", gzip.compress(parquet_bytes()))))[
        :2
    ] == [(1, {"a": "x"}), (2, {"a": "y"})]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n", "is a PNG image, not text"),
        (b"PAR1\x15\x04", "is a Parquet file, not text"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            r"is a Git LFS pointer \(git lfs pull",
        ),
        ("water,label".encode("utf-16-le"), "looks like UTF-16 without its mark"),
        ("\ufeff[1, 2, 3]".encode("utf-16-le")[:-1], "begins with the mark of UTF-16 and is not"),
    ],
)
def test_what_is_no_text_is_refused(name, content, words, tmp_path):
    with pytest.raises(LorakitError, match=words):
        read(registry.load("formats", name), tmp_path, content)


@pytest.mark.parametrize("name", [*TEXTS, "parquet"])
def test_what_cannot_be_opened_is_refused(name, tmp_path):
    module = registry.load("formats", name)
    with pytest.raises(LorakitError, match=r"none: cannot be read \(No such file"):
        list(module.read(tmp_path / "none"))
    with pytest.raises(LorakitError, match="is a folder, expected a file"):
        list(module.read(tmp_path))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(LorakitError, match="pipe: is a device or a pipe, expected a file"):
            list(module.read(tmp_path / "pipe"))


# Whatever is written comes back

quickly = settings(max_examples=60, deadline=None, derandomize=True)
words = st.text(st.characters(exclude_categories=["Cs"]))
one_line = words.map(lambda s: s.replace("\r", "").replace("\n", ""))
value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | words
    | st.floats(allow_nan=False, allow_infinity=False),
    st.lists,
    max_leaves=4,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


def fields(found):
    return [row.fields if isinstance(row, Example) else row for row in found]


@quickly
@given(
    rows=st.lists(st.dictionaries(words, value)),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_json_comes_back(rows, ascii, indent, place):
    written = json.dumps(rows, ensure_ascii=ascii, indent=indent)
    assert fields(json_format.read(file(place, "f.json", written))) == rows
    written = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    assert fields(jsonl.read(file(place, "f.jsonl", written))) == rows


@quickly
@given(
    cells=st.lists(st.tuples(words, words, words)),
    delimiter=st.sampled_from([None, *",;\t|:"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    zipped=st.booleans(),
)
def test_csv_comes_back(cells, delimiter, quoting, zipped, place):
    if delimiter == "\t":
        cells = [[cell.replace("\t", " ") for cell in row] for row in cells]
    written = table([("a", "b", "c"), *cells], delimiter=delimiter or ",", quoting=quoting).encode()
    found = csv_format.read(
        file(place, "f.csv", gzip.compress(written) if zipped else written), delimiter=delimiter
    )
    assert fields(found) == [dict(zip("abc", row)) for row in cells]


@quickly
@given(cells=st.lists(st.tuples(one_line, one_line)))
def test_tsv_without_quoting_comes_back(cells, place):
    cells = [[cell.replace("\t", " ") for cell in row] for row in cells]
    written = "\n".join(["a\tb", *("\t".join(row) for row in cells)])
    plain = [
        [c[1:-1].replace('""', '"') if re.fullmatch('"([^"]|"")*"', c) else c for c in row]
        for row in cells
    ]
    assert fields(tsv.read(file(place, "f.tsv", written))) == [
        dict(zip("ab", row)) for row in plain
    ]


@quickly
@given(
    lines=st.lists(one_line.filter(str.strip)), blanks=st.integers(1, 3), chunk=st.integers(1, 9)
)
def test_text_comes_back(lines, blanks, chunk, place):
    lines, breaks = ["Begin", *lines], "\n" * blanks
    expected = [{"text": line} for line in lines]
    assert fields(txt.read(file(place, "f.txt", breaks.join(lines)), sample="line")) == expected
    assert (
        fields(txt.read(file(place, "f.txt", f"{breaks}\n".join(lines)), sample="paragraph"))
        == expected
    )
    lines = [kept for line in lines if (kept := line.replace("<|>", "").strip())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(txt, "CHUNK", chunk)
        found = fields(
            txt.read(file(place, "f.txt", f"{breaks}<|>\n".join(lines)), separator="<|>")
        )
    assert found == [{"text": line} for line in lines]


@quickly
@given(pairs=st.lists(st.tuples(one_line, one_line)))
def test_parallel_text_comes_back(pairs, place):
    pairs = [("Begin", "Anfang"), *((a.strip() or "x", b.strip() or "y") for a, b in pairs)]
    for side in (0, 1):
        file(place, f"f.{side}", "".join(f"{pair[side]}\n" for pair in pairs))
    assert fields(parallel.read(place / "f.0", target="f.1")) == [
        {"source": a, "target": b} for a, b in pairs
    ]


@quickly
@given(
    columns=st.lists(
        st.tuples(words, st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.lists(words))
    ),
    codec=st.sampled_from(["none", "snappy", "zstd"]),
)
def test_parquet_comes_back(columns, codec, place):
    schema = pa.schema({"text": pa.string(), "n": pa.int64(), "list": pa.list_(pa.string())})
    expected = [dict(zip(schema.names, row)) for row in columns]
    path = parquet_file(
        place / "f.parquet", pa.Table.from_pylist(expected, schema), compression=codec
    )
    assert fields(parquet.read(path)) == expected


@settings(quickly, max_examples=10)
@given(texts=st.lists(words, min_size=1), turns=st.lists(words))
def test_what_datasets_saves_comes_back(texts, turns, place):
    shutil.rmtree(place / "saved", ignore_errors=True)
    expected = [
        {"text": text, "turns": [{"content": turn} for turn in turns] or None} for text in texts
    ]
    datasets.Dataset.from_list(expected).save_to_disk(place / "saved")
    assert fields(saved.read(place / "saved")) == expected


@settings(quickly, max_examples=200)
@given(
    content=st.binary() | words.map(str.encode) | st.text('a,;\t|"\r\n ').map(str.encode),
    data=st.data(),
)
def test_no_content_breaks_a_reader(content, data, place):
    module = registry.load("formats", data.draw(st.sampled_from(sorted(TEXTS))))
    with contextlib.suppress(LorakitError):
        found = list(module.read(file(place, "f.any", content)))
        assert (
            all(row.row >= 1 for row in found) and sorted(found, key=lambda row: row.row) == found
        )


# Public files


@pytest.mark.parametrize("name", ["amazon_cells_labelled.txt", "yelp_labelled.txt"])
def test_sentiment_sentences_are_all_read(name, real_data):
    path = real_data / "uci_sentiment" / name
    lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    expected = [(i, dict(zip("12", line.split("\t")))) for i, line in enumerate(lines, 1)]
    assert rows(tsv.read(path)) == expected and len(expected) == 1000


def test_wide_csv_is_read_as_others_read_it(real_data):
    path = real_data / "disaster_response" / "disaster_response_validation.csv"
    found = rows(csv_format.read(path))
    with open(path, encoding="utf-8", newline="") as lines:
        assert [row for _, row in found] == list(csv.DictReader(lines))
    assert len(found) == 2337 and {len(row) for _, row in found} == {45}


def test_stories_are_told_apart(real_data):
    path = real_data / "tinystories_text" / "tinystories_sample.txt"
    found = rows(txt.read(path))
    assert len(found) == 2317 and [row for row, _ in found[:3]] == [1, 5, 9]
    assert not any("<|endoftext|>" in sample["text"] for _, sample in found)
    assert found == rows(txt.read(path, separator="<|endoftext|>"))


def test_translations_are_paired(real_data):
    folder = real_data / "tatoeba_pairs"
    found = rows(parallel.read(folder / "tatoeba.deu-eng.deu", target="tatoeba.deu-eng.eng"))
    assert len(found) == 1000 and found[2] == (
        3,
        {
            "source": "Tom und Maria wollen nicht mehr mit uns singen.",
            "target": "Tom and Mary say they don't want to sing with us anymore.",
        },
    )


# The files that come with the project


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_files_load_without_a_rejected_row(path):
    examples, report = data.load(str(path))
    assert report.rejected == [] and len(examples) == report.rows >= 5
    assert path.stem not in registry.names("schemas") or report.schema == path.stem


@pytest.mark.parametrize(
    ("name", "format", "schema"),
    [
        ("reports", "folder", "prompt_completion"),
        ("saved", "saved", "text_label"),
        ("phrases.en", {"parallel": {"target": "phrases.fr"}}, "translation"),
    ],
)
def test_shipped_folders_and_pairs_load_without_a_rejected_row(name, format, schema):
    source = sources.source(str(DATA / "examples" / name), format)
    examples, report = data.load(source)
    assert report.schema == schema and report.rejected == [] and len(examples) == report.rows == 6
    assert isinstance(format, dict) or sources.source(str(DATA / "examples" / name)) == source


def test_relief_covers_its_domains():
    examples, report = data.load(str(DATA / "relief.jsonl"))
    domains = {e.fields["columns"]["domain"] for e in examples}
    assert len(domains) == 16 and len(examples) >= 200 and report.schema == "messages"
    assert all(m["content"].strip() for e in examples for m in e.fields["messages"])


def test_a_place_in_a_file_is_one_word():
    assert Example({}, "relief.jsonl", 12).where == "relief.jsonl:12"
    assert Rejected("relief.jsonl", 12, "why").where == "relief.jsonl:12"
