"""Data named by a hub id: read from a stand-in for the hub, whole or streamed, online or not, and every refusal."""

import io
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from helpers.hub_stand_in import Hub

from lorakit.common.errors import LorakitError
from lorakit.data.formats import hub as hub_format
from lorakit.data.formats import saved

CARD = """---
configs:
- config_name: camp
  data_files:
  - split: train
    path: camp/train.csv
  - split: test
    path: camp/test.csv
- config_name: road
  data_files: road.csv
---
"""
CLASSES = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': minor, '1': urgent}}}}
---
"""


class Reader:
    """Another process: huggingface_hub reads its environment once, when it is imported."""

    def __init__(self, home, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment = (
            kept
            | {
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_XET": "1",
                "NO_PROXY": "127.0.0.1",
                "no_proxy": "127.0.0.1",
            }
            | environment
        )
        self.pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), begin, (environment,)
        )

    def __call__(self, path, token=None, **options):
        return self.pool.submit(read, path, token, options).result(60)

    def fields(self, path, **options):
        return [row.fields for row in self(path, **options)]

    def identity(self, path, **options):
        return self.pool.submit(hub_format.identity, path, **options).result(60)


def begin(environment):
    os.environ.clear()
    os.environ.update(environment)
    time.sleep = lambda seconds: None  # between attempts
    import datasets

    datasets.config.USE_PARQUET_EXPORT = False  # asks another host, by name


def read(path, token, options):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    return list(hub_format.read(path, **options))


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def online(hub, home):
    reader = Reader(home, HF_ENDPOINT=hub.url)
    yield reader
    reader.pool.shutdown()


@pytest.mark.parametrize(
    "path, expected",
    [
        ("relief/water", True),
        ("relief/water-v1.5", True),
        ("relief_2/9", True),
        ("data/relief.jsonl", False),
        ("data/relief.JSON.gz", False),
        ("./water", False),
        ("../water", False),
        ("a/b/c", False),
        ("water", False),
        ("relief/wäter", False),
        ("/relief/water", False),
        ("here/there", False),
    ],
)
def test_what_is_a_hub_id(path, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "there").mkdir(parents=True)
    assert hub_format.takes(path) is expected


def test_json_lines(hub, online):
    sha = hub.commit(
        "relief/lines",
        {"data.jsonl": '{"a": "x", "b": [1]}\n{"a": "y", "b": []}\n', "README.md": "# Hi"},
    )
    rows = online("relief/lines")
    assert [(row.where, row.fields) for row in rows] == [
        ("relief/lines/train:1", {"a": "x", "b": [1]}),
        ("relief/lines/train:2", {"a": "y", "b": []}),
    ]
    assert online.identity("relief/lines") == f"relief/lines@{sha}/train"
    assert online.fields("relief/lines", rows=1) == [{"a": "x", "b": [1]}]
    before = hub.sent("data.jsonl")
    assert online.fields("relief/lines") == [row.fields for row in rows]
    assert hub.sent("data.jsonl") == before > 0  # downloaded once


def test_parquet_with_an_image_that_stays_as_it_is(hub, online):
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    image = pyarrow.array([{"bytes": b"\x89PNG", "path": "1.png"}])
    features = b'{"info": {"features": {"image": {"_type": "Image"}, "n": {"dtype": "int64", "_type": "Value"}}}}'
    table = pyarrow.table({"image": image, "n": [7]}).replace_schema_metadata(
        {b"huggingface": features}
    )
    parquet.write_table(table, file)
    hub.commit("relief/images", {"data/test-00000-of-00001.parquet": file.getvalue()})
    expected = [{"image": {"bytes": b"\x89PNG", "path": "1.png"}, "n": 7}]
    assert online.fields("relief/images", split="test") == expected
    assert online.fields("relief/images", split="test", streaming=True) == expected


def test_saved_for_a_machine_without_the_hub(hub, online, tmp_path):
    hub.commit(
        "relief/kept",
        {
            "data.csv": "text,label\nA bridge is gone.,1\nA tap drips.,0\nNobody knows.,-1\n",
            "README.md": CLASSES,
        },
    )
    options = [{}, {"rows": 2}, {"rows": 9, "streaming": True}]
    for each in options:
        folder = tmp_path / str(len(str(each)))
        online.pool.submit(hub_format.save, "relief/kept", folder, **each).result(60)
        assert [row.fields for row in saved.read(folder)] == online.fields("relief/kept", **each)
    assert online.fields("relief/kept")[1:] == [
        {"text": "A tap drips.", "label": "minor"},
        {"text": "Nobody knows.", "label": None},
    ]
    with pytest.raises(LorakitError, match="has no split 'dev'"):
        online.pool.submit(hub_format.save, "relief/kept", tmp_path / "no", split="dev").result(60)


def test_subsets_and_splits(hub, online):
    sha = hub.commit(
        "relief/parts",
        {
            "README.md": CARD,
            "camp/train.csv": "a\n1\n2\n",
            "camp/test.csv": "a\n3\n",
            "road.csv": "b\nx\n",
        },
    )
    assert online.fields("relief/parts", subset="camp") == [{"a": 1}, {"a": 2}]
    assert online.fields("relief/parts", subset="camp", split="test") == [{"a": 3}]
    assert online.fields("relief/parts", subset="road") == [{"b": "x"}]
    assert (
        online.identity("relief/parts", subset="camp", split="test", rows=9)
        == f"relief/parts@{sha}/camp/test[:9]"
    )
    for options, words in [
        (
            {},
            "relief/parts has several subsets (subsets: camp, road). Name one, e.g. format: {hub: {subset: camp}}",
        ),
        (
            {"subset": "raod"},
            "relief/parts has no subset 'raod'; did you mean 'road'? (subsets: camp, road). Name one, "
            "e.g. format: {hub: {subset: camp}}",
        ),
        (
            {"subset": "camp", "split": "tests"},
            "relief/parts has no split 'tests'; did you mean 'test'? (splits: "
            "train, test). Name one, e.g. format: {hub: {split: test}}",
        ),
    ]:
        with pytest.raises(LorakitError) as error:
            online("relief/parts", **options)
        assert str(error.value) == words


def test_classes_come_by_name(hub, online):
    hub.commit(
        "relief/classes",
        {
            "README.md": CLASSES,
            "data.jsonl": "".join(
                f'{{"text": "t", "label": {label}}}\n' for label in ("1", "0", "-1", "null")
            ),
        },
    )
    for streaming in (False, True):
        labels = [
            fields["label"] for fields in online.fields("relief/classes", streaming=streaming)
        ]
        assert labels == ["urgent", "minor", None, None]


def test_streaming_takes_what_it_needs_and_stores_nothing(hub, online, home):
    shard = "".join(f'{{"n": {n}, "text": "{"x" * 1000}"}}\n' for n in range(100))
    hub.commit("relief/shards", {f"data/train-{n:05}-of-00005.jsonl": shard for n in range(5)})
    rows = online("relief/shards", streaming=True, rows=3)
    assert [(row.row, row.fields["n"]) for row in rows] == [(1, 0), (2, 1), (3, 2)]
    assert hub.sent("00000-of-00005.jsonl") >= len(shard) and hub.sent("00001-of-00005.jsonl") == 0
    assert not [
        p for p in home.rglob("*") if "shards" in str(p) and p.is_file() and p.stat().st_size > 1000
    ]


def test_revisions(hub, online):
    first = hub.commit("relief/moves", {"data.jsonl": '{"a": 1}\n'})
    hub.commit("relief/moves", {"data.jsonl": '{"a": 3}\n'}, branch="refs/convert/parquet")
    second = hub.commit("relief/moves", {"data.jsonl": '{"a": 2}\n'})
    assert online.fields("relief/moves") == [{"a": 2}]
    assert online.fields("relief/moves", revision=first) == [{"a": 1}]
    assert online.fields("relief/moves", revision="refs/convert/parquet") == [{"a": 3}]
    assert online.identity("relief/moves") == f"relief/moves@{second}/train"
    assert online.identity("relief/moves", revision=first) == f"relief/moves@{first}/train"
    with pytest.raises(
        LorakitError,
        match=r"^relief/moves has no revision 'v9': name a branch, a tag or a commit of "
        r"https://huggingface\.co/datasets/relief/moves/commits/main$",
    ):
        online("relief/moves", revision="v9")


def test_a_gate_and_its_key(hub, online):
    hub.commit("relief/gated", {"data.jsonl": '{"a": 1}\n'}, tokens={"right"})
    gated = (
        r"^relief/gated is gated: accept its licence at https://huggingface\.co/datasets/relief/gated, then put a "
        r"token into HF_TOKEN \(a Colab or Kaggle secret of that name, or the environment\)$"
    )
    for token in (None, "wrong"):
        with pytest.raises(LorakitError, match=gated):
            online("relief/gated", token=token)
    assert [row.fields for row in online("relief/gated", token="right")] == [{"a": 1}]


@pytest.mark.parametrize("token", [None, "any"])
@pytest.mark.parametrize("name", ["relief/none", "relief/no--name"])
def test_a_name_that_is_not_there(online, name, token):
    with pytest.raises(
        LorakitError,
        match=f"^{name}: no such file or folder here, and no such data set at the hub "
        rf"\(https://huggingface\.co/datasets/{name}\)\. A private one needs a",
    ):
        online(name, token=token)


@pytest.mark.parametrize(
    "failing, words",
    [
        (
            (401, "Invalid credentials in Authorization header"),
            r"the hub refuses access \(.*Invalid credentials.*\); look at https://huggingface\.co/datasets/relief/down and at "
            r"the token in HF_TOKEN$",
        ),
        ((503, "Overloaded"), r"the hub answers 503 \(.*Overloaded.*\); start again later$"),
    ],
)
def test_a_hub_that_fails(hub, online, failing, words):
    hub.failing = failing
    try:
        with pytest.raises(LorakitError, match=f"^relief/down: {words}"):
            online("relief/down", token="any")
    finally:
        hub.failing = None


def test_a_cut_download_is_named_and_taken_up(hub, online):
    hub.commit(
        "relief/cut", {"train/a.jsonl": '{"a": 1}\n' * 1000, "train/b.jsonl": '{"a": 2}\n' * 1000}
    )
    hub.cuts["train/b.jsonl"] = 4000
    with pytest.raises(
        LorakitError,
        match=r"^relief/cut: the download was cut at train/b\.jsonl \(peer closed "
        r".*\)\. Start again: the files that are whole are kept$",
    ):
        online("relief/cut")
    with pytest.raises(
        LorakitError,
        match=r"^relief/cut/train: the stream broke after 1000 rows \(.*\)\. Start again",
    ):
        online("relief/cut", streaming=True)
    hub.cuts.clear()
    assert len(online("relief/cut")) == 2000
    assert [
        r.sent for r in hub.log if r.path.endswith("train/a.jsonl") and r.status == 200 and r.sent
    ] == [9000]


@pytest.mark.parametrize(
    "files, options, words",
    [
        (
            {"data.jsonl": '{"a": 1}\n{"a": \n'},
            {},
            r": its files cannot be read \(.*(JSON|object).*\); look at the files: "
            r"https://huggingface\.co/datasets/relief/bad\d/tree/[0-9a-f]{40}$",
        ),
        (
            {"data.jsonl": '{"a": 1}\n{"a": \n'},
            {"streaming": True},
            r"/train: the stream broke after 0 rows \(.*"
            r"(JSON|object).*\)\. Start again; if it breaks there",
        ),
        (
            {"bad2.py": "import datasets"},
            {},
            r" is a program \(bad2\.py\), which datasets no longer runs\. .*refs/convert",
        ),
        ({"notes.bin": b"\x00"}, {}, r" could not be loaded: .*data files"),
        (
            {"README.md": "---\nconfigs: 7\n---\n", "data.jsonl": '{"a": 1}\n'},
            {},
            r" could not be loaded: .",
        ),
    ],
)
def test_data_sets_that_cannot_be_read(hub, online, files, options, words, request):
    name = f"relief/bad{request.node.callspec.indices['files']}"
    hub.commit(name, files)
    with pytest.raises(LorakitError, match=f"^{name}{words}"):
        online(name, **options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rows": 0}, "format: hub: rows=0, expected a whole number from 1"),
        ({"rows": "3"}, "format: hub: rows='3', expected a whole number from 1"),
        ({"revision": 1.0}, "format: hub: revision=1.0 is no name; put it in quotes"),
    ],
)
def test_options_that_make_no_sense(options, words):
    for function in (hub_format.read, hub_format.identity):
        with pytest.raises(LorakitError, match=words):
            list(function("relief/lines", **options))


def test_without_internet(hub, online, home):
    kept = hub.commit("relief/kept", {"data.jsonl": '{"a": 1}\n'})
    assert online.fields("relief/kept") == [{"a": 1}]
    hub.commit("relief/kept", {"data.jsonl": '{"a": 2}\n'})
    asked = len(hub.log)
    offline = Reader(home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    gone = Reader(home, HF_ENDPOINT="http://127.0.0.1:9")
    try:
        for options in ({}, {"revision": "main"}, {"revision": kept}, {"streaming": True}):
            assert offline.fields("relief/kept", **options) == [{"a": 1}]
        assert offline.identity("relief/kept") == f"relief/kept@{kept}/train"
        with pytest.raises(
            LorakitError,
            match=r"^relief/kept: v2 could not be loaded; the last one in the local cache "
            rf"is {kept}\. Start again with internet, or take that one",
        ):
            offline("relief/kept", revision="v2")
        with pytest.raises(
            LorakitError,
            match=r"^relief/other: HF_HUB_OFFLINE is set, and this is not in the local "
            r"cache \(.*\)\. Without internet name a local file or folder, or",
        ):
            offline("relief/other")
        assert len(hub.log) == asked
        with pytest.raises(
            LorakitError,
            match=r"^relief/kept: the hub cannot be reached \(.*\)\. Without internet "
            r"name a local file or folder, or attach it; what was downloaded "
            r"before is read with HF_HUB_OFFLINE=1 in the environment$",
        ):
            gone("relief/kept")
    finally:
        offline.pool.shutdown()
        gone.pool.shutdown()


def sets_of(path):
    """(rows of each set, notes) as a run prepares them."""
    from lorakit.data import loading, sources

    sets, report = loading.prepare(sources.of_run(path))
    return {name: [e.where for e in some] for name, some in sets.items()}, report.notes


def test_official_splits(hub, online, tmp_path):
    card = CLASSES.replace(
        "dataset_info:",
        "configs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {n}\n    path: {n}.csv\n" for n in ("train", "dev", "test", "raw"))
        + "dataset_info:",
    )
    rows = {"train": 20, "dev": 4, "test": 5, "raw": 9}
    files = {
        f"{name}.csv": "text,label\n"
        + "".join(f"{name} message {i * 7919 % 997},{i % 2}\n" for i in range(count))
        for name, count in rows.items()
    }
    hub.commit("relief/official", {**files, "README.md": card})
    submit = online.pool.submit
    assert submit(hub_format.splits, "relief/official").result(60) == [
        "train",
        "validation",
        "test",
    ]
    assert submit(hub_format.splits, "relief/official", split="train").result(60) == []
    assert submit(hub_format.classes, "relief/official").result(60) == {
        "label": ["minor", "urgent"]
    }
    sets, notes = submit(sets_of, "relief/official").result(120)
    assert {name: len(some) for name, some in sets.items()} == {
        "train": 20,
        "validation": 4,
        "test": 5,
    }
    assert all(where.startswith("relief/official/dev:") for where in sets["validation"])
    assert "the data's own splits are used: train, validation, test" in notes
    assert "not read, as other splits are: raw" in notes
    submit(hub_format.save, "relief/official", tmp_path / "kept").result(60)
    assert saved.splits(tmp_path / "kept") == ["train", "validation", "test"]
    assert len(list(saved.read(tmp_path / "kept", split="validation"))) == 4
