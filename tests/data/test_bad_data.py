"""Files that cannot be used, and files that can: `lorakit check` names the place, the cause and the cure."""

import gzip
import json
import os
import time

import pytest
from helpers.bad_data import lines, put, qa, refused, said
from helpers.bad_files import ENDINGS, GOOD, TABLE, UNUSABLE, table


def turns(*roles):
    return {"messages": [{"role": role, "content": f"words {i}"} for i, role in enumerate(roles)]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the names below are in, and that the command is called from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_cannot_be_used(folder, capsys, name):
    content, words = UNUSABLE[name]
    put(folder / name, content)
    refused(capsys, name + words, "check", name)
    assert [p.name for p in folder.iterdir()] == [name]  # nothing is left behind


# reason: the row it is given for, after three that are sound
NULL, SURROGATE = (
    '{"prompt": "a?", "completion": null}',
    '{"prompt": "a \\ud800?", "completion": "b"}',
)
PART = [
    {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
    {"role": "assistant", "content": "b"},
]
CALL = [
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
]
ROLES = "system, developer, user, human, assistant, gpt, chatgpt, bing, bard, model"
BAD_ROWS = {
    "broken JSON: Expecting ',' delimiter (column 18)": '{"prompt": "a?, "comple',
    "broken JSON: Expecting property name enclosed in double quotes (column 2)": "{prompt: 1}",
    "broken JSON: nested too deeply": "[" * 100_000,
    "expected an object {…}, found list": '["a?", "b"]',
    "expected an object {…}, found NoneType": "null",
    "column 'completion' (or response, solution, output, answer) is missing": '{"prompt": "a?"}',
    "'completion' is null": NULL,
    "'completion' is NaN": NULL.replace("null", "NaN"),
    "'completion' is empty": NULL.replace("null", '" \\n"'),
    "'completion' is true, expected text: write the word to be said, e.g. yes": NULL.replace(
        "null", "true"
    ),
    "'completion' is list, expected text": NULL.replace("null", "[1]"),
    "'prompt' is int, expected text": '{"prompt": 3, "completion": "b"}',
    "'prompt' is empty": '{"prompt": "", "completion": "b"}',
    "'prompt' holds half a character (a lone surrogate)": SURROGATE,
    "more than 100 lists or objects inside each other": '{"prompt": "a?", "completion": "b", "c": '
    + "[" * 500
    + "]" * 500
    + "}",
}
BAD_TURNS = {
    "roles out of order: turn 1 is assistant, expected user": turns(
        "assistant", "user", "assistant"
    ),
    "roles out of order: turn 2 is user, expected assistant": turns("user", "user", "assistant"),
    "a system turn stands first, and once": turns("system", "system", "user", "assistant"),
    "no assistant turn: there is nothing to train": turns("system", "user"),
    "the last turn is the user's: there is no answer to it": turns("user", "assistant", "user"),
    f"turn 1 has the role 'wizard'; known: {ROLES}": turns("wizard", "assistant"),
    f"turn 1 has no role; known: {ROLES}": {"messages": [{"content": "a?"}]},
    "'messages' is empty, expected a list of turns": {"messages": []},
    "'messages' is str, expected a list of turns": {"messages": "a?"},
    "'messages' is NoneType, expected a list of turns": {"messages": None},
    "turn 1 is str, expected an object with role and content": {"messages": ["a?"]},
    "turn 1 has an image part; only text can be trained: leave the row out or put it in words": {
        "messages": PART
    },
    "turn 2 has a call without 'name'": {"messages": CALL},
    "tool 1 of 'tools' has no 'name'": {
        **turns("user", "assistant"),
        "tools": [{"description": "search"}],
    },
    "turn 2 (assistant): column 'content' (or value) is missing": {
        "messages": [turns("user")["messages"][0], {"role": "assistant"}]
    },
}
BAD_LABELS = {
    "'label' is NaN": '{"text": "a", "label": NaN}',
    "'label' is null": {"text": "a", "label": None},
    "'label' is 0.5, expected a class: text or a whole number": {"text": "a", "label": 0.5},
    "'label' is list, expected text": {"text": "a", "label": ["x", "y"]},
}
SOUND = {
    "qa": qa(),
    "turns": [turns("user", "assistant"), turns("system", "user", "assistant")],
    "labels": [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(3)],
}


@pytest.mark.parametrize(
    ("kind", "reason", "row"),
    [
        *(("qa", *pair) for pair in BAD_ROWS.items()),
        *(("turns", *pair) for pair in BAD_TURNS.items()),
        *(("labels", *pair) for pair in BAD_LABELS.items()),
    ],
    ids=lambda x: None if isinstance(x, dict) else str(x)[:30],
)
def test_a_bad_row_is_listed_and_the_others_used(folder, capsys, kind, reason, row):
    put(folder / "rows.jsonl", lines(*SOUND[kind], row))
    code, out, err = said(capsys, "check", "rows.jsonl")
    sound = len(SOUND[kind])
    assert (code, err) == (1, "")
    *_, listed, advice, summary = out.splitlines()
    assert listed == f"rows.jsonl:{sound + 1}: {reason}"
    assert advice.endswith("lorakit check rows.jsonl --fix")
    assert summary.startswith(f"{sound} of {sound + 1} rows can be used; the other one is left out")
    assert f"{sound} rows can be used, 1 cannot" in out


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "late.jsonl",
            lines(*qa(316), '{"prompt": "a?", "completion": }', *qa(1)),
            ["late.jsonl:317: broken JSON: Expecting value (column 32)"],
        ),
        (
            "latin.jsonl",
            lines(*qa(), {"prompt": "café?", "completion": "b"}).encode("latin-1"),
            [
                'latin.jsonl:4: not UTF-8 at character 16 (Windows-1252 would read …rompt": "café?", "comple…); save the file as '
                "UTF-8"
            ],
        ),
        (
            "latin.csv",
            "prompt,completion\na?,b\ncafé?,d\n".encode("cp1252"),
            [
                "latin.csv:3: not UTF-8 at character 4 (Windows-1252 would read …café?,d…); save the file as UTF-8"
            ],
        ),
        (
            "latin.txt",
            "one line\nune fenêtre\n".encode("latin-1"),
            [
                "latin.txt:2: not UTF-8 at character 8 (Windows-1252 would read …une fenêtre…); save the file as UTF-8"
            ],
        ),
        (
            "ragged.csv",
            "prompt,completion\na?,b\nc?,d,e\nf?\ng?,h\n",
            ["ragged.csv:3: expected 2 cells, found 3", "ragged.csv:4: expected 2 cells, found 1"],
        ),
        (
            "quote.csv",
            'prompt,completion\na?,b\n"c" d?,e\n',
            [
                'quote.csv:3: a quote in the middle of a quoted cell; inside quotes a quote is written twice: ""'
            ],
        ),
        (
            "null.parquet",
            table(["a?", "b?"], ["c", None], names=["prompt", "completion"]),
            ["null.parquet:2: 'completion' is null"],
        ),
        (
            "words.json",
            json.dumps([*qa(), "words"]),
            ["words.json:4: expected an object {…}, found str"],
        ),
    ],
)
def test_a_bad_row_of_each_format(folder, capsys, name, content, expected):
    put(folder / name, content)
    code, out, err = said(capsys, "check", name)
    assert (code, err) == (1, "")
    assert [
        line for line in out.splitlines() if line.startswith(f"{name}:") and "rows, " not in line
    ] == expected


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [*qa(), {"prompt": "a " * 1200, "completion": "b"}],
            "rows.jsonl:4: no answer token within max_length=1024 (the row has ",
        ),
        (
            [{"text": f"text {i}", "label": "x"} for i in range(12)],
            "WRONG: every row has the class 'x': there is nothing to tell apart",
        ),
    ],
    ids=["longer than max_length", "one class"],
)
def test_rows_that_are_sound_and_of_no_use(folder, capsys, rows, words):
    put(folder / "rows.jsonl", lines(*rows))
    code, out, err = said(capsys, "check", "rows.jsonl")
    assert (code, err) == (1, "") and words in out


# What looks wrong and is not


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("mark.jsonl", b"\xef\xbb\xbf" + GOOD.encode(), 3),
        ("lines.json", GOOD, 3),
        ("lines.txt", GOOD, 3),
        ("array.jsonl", json.dumps(qa()), 3),
        ("array.txt", json.dumps(qa(), indent=1), 3),
        ("mark.csv", b"\xef\xbb\xbfprompt,completion\na?,b\n", 1),
        ("returns.jsonl", GOOD.replace("\n", "\r\n"), 3),
        ("returns.csv", "prompt,completion\r\na?,b\r\nc?,d\r\n", 2),
        ("returns-alone.csv", "prompt,completion\ra?,b\rc?,d\r", 2),
        ("utf16.jsonl", GOOD.encode("utf-16"), 3),
        ("utf32.csv", "prompt,completion\na?,b\n".encode("utf-32"), 1),
        ("separators.jsonl", lines(*qa(), {"prompt": "a\u0085b\u2028c?", "completion": "d\0e"}), 4),
        ("separators.csv", "prompt,completion\na\u0085b\u2028c?,d\0e\nf?,g\n", 2),
        ("newline.csv", 'prompt,completion\n"a\nb?","c\r\n""d"""\ne?,f\n', 2),
        ("unpacked.jsonl.gz", GOOD, 3),
        ("packed.jsonl", gzip.compress(GOOD.encode(), mtime=0), 3),
        ("packed.parquet.gz", gzip.compress(TABLE, mtime=0), 2),
        (
            "mixed.jsonl",
            lines(
                *({"text": f"t {i}", "label": label} for i, label in enumerate(["x", 1, True, 1.0]))
            ),
            4,
        ),
        ("number.jsonl", lines({"prompt": "How many?", "completion": 15}), 1),
        ("no-header.tsv", "no water for days\tneed\nthe road is gone\ttransport 2\n", None),
        ("last-line.jsonl", GOOD.rstrip(), 3),
    ],
)
def test_a_file_that_works(folder, capsys, name, content, rows):
    put(folder / name, content)
    if rows is None:  # columns without a name are given by number
        put(
            folder / "run.yaml",
            f"data: {name}\nformat: {{tsv: {{header: false}}}}\n"
            "columns: {text: '1', label: '2'}\n",
        )
    whole = ("--set", "validation_fraction=0", "--set", "test_fraction=0")
    code, out, err = said(capsys, "check", "run.yaml" if rows is None else name, *whole)
    assert (code, err) == (0, "")
    found = "1 row" if rows == 1 else f"{rows or 2} rows"
    assert f"{found} can be used, 0 cannot" in out


def test_ten_megabytes_in_one_field(folder, capsys):
    put(
        folder / "rows.jsonl",
        lines(*qa(), {"prompt": "a?", "completion": "b", "page": "x" * 10**7}),
    )
    start = time.process_time()
    code, out, _ = said(capsys, "check", "rows.jsonl")
    assert code == 0 and "4 rows can be used, 0 cannot" in out
    assert time.process_time() - start < 5


def test_a_folder_that_is_linked_in_itself_is_read_once(folder, capsys):
    (folder / "rows").mkdir()
    put(folder / "rows/a.jsonl", GOOD)
    os.symlink("../rows", folder / "rows/again")
    code, out, _ = said(capsys, "check", "rows")
    assert code == 0 and "3 rows can be used, 0 cannot" in out


# Paths

PATHS = {
    "nowhere.jsonl": ": no such file (looked from {folder})",
    "https://example.org/rows.jsonl": ": no such file (looked from {folder})",
    "loop.jsonl": ": is a link that leads to no file; name the file itself",
    "dangling.jsonl": ": is a link that leads to no file; name the file itself",
    "pipe.jsonl": ": is a device or a pipe, expected a file or a folder",
    "/dev/zero": ": is a device or a pipe, expected a file or a folder",
    "folder.jsonl": f": no file in it can be read (it has none; known endings: {ENDINGS})",
    "pictures": ": no usable row; the first: pictures/a.png:1: a.png: is no picture that can be read (…PNG…)",
    "nobody/nothing": ": HF_HUB_OFFLINE is set, and this is not in the local cache (…). Without internet name a local "
    "file or folder, or attach it",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_leads_to_no_data(folder, capsys, path):
    os.symlink("loop.jsonl", folder / "loop.jsonl")
    os.symlink("gone.jsonl", folder / "dangling.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "folder.jsonl").mkdir()
    (folder / "pictures").mkdir()
    put(folder / "pictures/a.png", b"\x89PNG")
    refused(capsys, path + PATHS[path].replace("{folder}", str(folder)), "check", path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "data='': string should have at least 1 character…"),
        ("a\0b", "data='a\\x00b' holds NUL or a byte that is not UTF-8; use another name"),
        (
            os.fsdecode(b"caf\xe9.jsonl"),
            "data='caf\\udce9.jsonl': input should be a valid string, …",
        ),
    ],
    ids=["empty", "NUL", "no UTF-8"],
)
def test_a_name_that_is_none(folder, capsys, path, words):
    refused(capsys, words, "check", path)


# Settings of the data, of which rows.jsonl is sound

SETTINGS = {
    "task: knit": "there is no task 'knit'; use one of caption, chat, chat_images, classify_image, "
    "classify_text, preferences, text, transcribe, unpaired",
    "task: text": "rows.jsonl: the columns completion, prompt fit no schema (text: text). Name them with `columns`, …",
    "format: xlsx": "there is no format 'xlsx'; use one of arrow, csv, excel, folder, hub, …",
    "format: {csv: {delim: ;}}": "format: csv has no option 'delim'; did you mean 'delimiter'? (options: delimiter, header)",
    "format: {csv: {delimiter: ;;}}": "rows.jsonl: delimiter=';;' is not one character such as ',' or ';'",
    "format: {csv: {header: 3}}": "rows.jsonl: header=3 is neither true nor false",
    "format: {csv: {}, tsv: {}}": "format={'csv': {}, 'tsv': {}} is not one format with its options, e.g. format: {csv: {header: false}}",
    "format: {}": "format={} is not one format with its options, e.g. format: {csv: {header: false}}",
    "format: {hub: {}}": "rows.jsonl: is no name at the hub, such as owner/name; leave `format` away to read a file",
    "format: {hub: {rows: 0}}\ndata: a/b": "format: hub: rows=0, expected a whole number from 1",
    "format: parallel": "format: parallel needs the option 'target', e.g. format: {parallel: {target: …}}",
    "format: {parallel: {target: none.fr}}": "none.fr: no such file, neither in {folder} nor beside rows.jsonl",
    "format: {parallel: {target: rows.jsonl}}": "rows.jsonl: is both source and target; name the other language's file as target",
    "format: {parallel: {target: short.txt}}": "rows.jsonl: has 3 lines and short.txt 1; line n of one must be the translation of line n of the other",
    "format: {txt: {sample: page}}": "rows.jsonl: there is no sample='page' (samples: auto, line, paragraph, file)",
    "columns: {promt: prompt}": "columns: no schema has 'promt'; did you mean 'prompt'? (they have answer, …)",
    "columns: {prompt: promt}": "rows.jsonl: columns names 'promt', which no row has; did you mean 'prompt'? (columns: completion, prompt)",
    "columns: {prompt: 'Q: {promt}'}": "rows.jsonl: columns names 'promt', which no row has; did you mean 'prompt'? (columns: completion, prompt)",
    "columns: {prompt: 'Q: {prompt'}": "the template 'Q: {prompt' has a single '{'; write '{{' for the character, {name} for a column",
    "columns: [prompt]": "run.yaml: columns=['prompt']: input should be a valid dictionary",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_of_the_data_that_cannot_be(folder, capsys, text):
    put(folder / "rows.jsonl", GOOD)
    put(folder / "short.txt", "one\n")
    put(folder / "run.yaml", text if "data" in text else f"data: rows.jsonl\n{text}")
    refused(capsys, SETTINGS[text].replace("{folder}", str(folder)), "check", "run.yaml")


def test_the_test_rows_are_the_training_rows(folder, capsys):
    put(folder / "rows.jsonl", GOOD)
    code, out, _ = said(capsys, "check", "rows.jsonl", "--set", "test_data=rows.jsonl")
    assert code == 1 and "WRONG: 3 rows left out of train as repetitions of rows in test" in out


def test_fixing_writes_over_nothing(folder, capsys):
    put(folder / "rows.jsonl", lines(*qa(), NULL))
    put(folder / "rows.clean.jsonl", "mine")
    refused(
        capsys,
        "rows.clean.jsonl: is there already; move it away first, nothing is written over",
        "check",
        "rows.jsonl",
        "--fix",
    )
    assert (folder / "rows.clean.jsonl").read_text() == "mine"
    assert sorted(p.name for p in folder.iterdir()) == ["rows.clean.jsonl", "rows.jsonl"]


def test_a_column_that_no_terminal_can_show(folder, capsys):
    put(folder / "rows.jsonl", lines('{"prompt": "a?", "completion": "b", "\\ud800": 1}', *qa()))
    for options in ([], ["--json"]):
        code, out, err = said(capsys, "check", "rows.jsonl", *options)
        assert (code, err) == (0, "") and "\\ud800" in out
    code, *_ = said(capsys, "check", "rows.jsonl", "--fix")
    assert code == 0
    kept = [json.loads(line) for line in (folder / "rows.clean.jsonl").read_text().splitlines()]
    assert kept[0] == {"prompt": "a?", "completion": "b", "\ud800": 1}
