"""Every row of a file comes back, as an example or as a rejected row that says where it stands and why."""

import json
from pathlib import Path

import pytest

from lorakit import data, registry
from lorakit.errors import LorakitError
from lorakit.example import Example, Rejected
from lorakit.formats import json as json_format
from lorakit.formats import jsonl

DATA = Path(__file__).parent.parent / "data"
SHIPPED = sorted(p for folder in (DATA, DATA / "examples") for p in folder.iterdir()
                 if any(p.suffix in m.SUFFIXES for m in registry.modules("formats").values()))


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(module, folder, content):
    """(row, fields or reason) of each row."""
    name = "f" + module.SUFFIXES[0]
    found = list(module.read(file(folder, name, content)))
    assert {row.file for row in found} <= {name}
    return [(row.row, row.fields if isinstance(row, Example) else row.reason) for row in found]


# JSON

@pytest.mark.parametrize("content", [
    [{"a": "x", "b": 1}, {"a": "y", "b": 2}],
    {"a": ["x", "y"], "b": [1, 2]},
    {"data": [{"a": "x", "b": 1}, {"a": "y", "b": 2}]},
    {"version": "1.0", "rows": [{"a": "x", "b": 1}, {"a": "y", "b": 2}], "count": 2},
], ids=["array of objects", "object of arrays", "array inside", "array beside other things"])
def test_json_in_each_form(content, tmp_path):
    expected = [(1, {"a": "x", "b": 1}), (2, {"a": "y", "b": 2})]
    assert read(json_format, tmp_path, json.dumps(content)) == expected
    assert read(json_format, tmp_path, b"\xef\xbb\xbf" + json.dumps(content, indent=2).encode()) == expected


@pytest.mark.parametrize("wrap", [list, lambda rows: {"data": rows}], ids=["array", "array inside"])
def test_json_rows_that_are_no_objects_are_named(wrap, tmp_path):
    content = json.dumps(wrap([{"a": "x"}, "y", {"a": "z"}, None, [1]]))
    assert read(json_format, tmp_path, content) == [
        (1, {"a": "x"}), (2, "expected an object {…}, found str"), (3, {"a": "z"}),
        (4, "expected an object {…}, found NoneType"), (5, "expected an object {…}, found list")]


@pytest.mark.parametrize(("content", "words"), [
    ('[{"a": 1},\n {"b": }]', r"f\.json:2: broken JSON: Expecting value at column 8"),
    ('{"a": 1}\n{"a": 2}\n', r"f\.json:2: broken JSON: .*One object a line\? Then name the file \.jsonl"),
    ("", r"f\.json:1: broken JSON"),
    ('"words"', "expected an array of rows, found str"),
    ('{"a": 1}', "expected an array of rows, found dict"),
    ('{"a": [1, 2], "b": [1]}', r"unequal lengths: \{'a': 2, 'b': 1\}"),
    ('{"train": [{"a": 1}], "test": [{"a": 1}], "v": 1}', r"several lists inside \(train, test\)"),
    ("[" * 100_000, "nested too deeply"),
    ("[" + "9" * 5000 + "]", "broken JSON: Exceeds the limit"),
    (b'[{"a": "caf\xe9"}]', "not UTF-8 at character 12 .*; save the file as UTF-8"),
])
def test_unusable_json_says_what_and_where(content, words, tmp_path):
    with pytest.raises(LorakitError, match=words):
        read(json_format, tmp_path, content)


# JSON Lines

def test_jsonl_numbers_rows_by_line(tmp_path):
    content = '\ufeff{"a": 1}\r\n\n  \n{"a": "\u2028\u0085"}\n{"a":\r3}'
    assert read(jsonl, tmp_path, content) == [(1, {"a": 1}), (4, {"a": "\u2028\u0085"}), (5, {"a": 3})]


def test_bad_lines_are_named_and_the_others_kept(tmp_path):
    lines = [b'{"a": 1}', b'{"a": }', b'[1]', b'{"a": "caf\xe9"}', b"[" * 100_000,
             b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1} {"a": 2}', b'{"a": 7}']
    found = read(jsonl, tmp_path, b"\n".join(lines))
    assert [row for row, _ in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    (_, first), *bad, (_, last) = found
    assert first == {"a": 1} and last == {"a": 7}
    assert [reason for _, reason in bad[:4]] == [
        "broken JSON: Expecting value at column 7", "expected an object {…}, found list",
        'not UTF-8 at character 11 (Windows-1252 would read …{"a": "café"}…); save the file as UTF-8',
        "broken JSON: nested too deeply"]
    assert bad[4][1].startswith("broken JSON: Exceeds the limit") and "Extra data at column 10" in bad[5][1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_says_the_encoding(encoding, tmp_path):
    assert read(jsonl, tmp_path, '{"a": "é "}\n{"a": 2}\n'.encode(encoding)) == [(1, {"a": "é "}), (2, {"a": 2})]


# The files that come with the project

@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_files_load_without_a_rejected_row(path):
    examples, report = data.load(str(path))
    assert report.rejected == [] and len(examples) == report.rows >= 5
    assert path.stem not in registry.names("schemas") or report.schema == path.stem


def test_relief_covers_its_domains():
    examples, report = data.load(str(DATA / "relief.jsonl"))
    domains = {e.fields["columns"]["domain"] for e in examples}
    assert len(domains) == 16 and len(examples) >= 200 and report.schema == "messages"
    assert all(m["content"].strip() for e in examples for m in e.fields["messages"])


def test_a_place_in_a_file_is_one_word():
    assert Example({}, "relief.jsonl", 12).where == "relief.jsonl:12"
    assert Rejected("relief.jsonl", 12, "why").where == "relief.jsonl:12"
