"""The studio without a browser: what it lets in, what it refuses, how it answers. In a browser: test_studio_browser."""

import gzip
import json
import os
import re
import threading
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.machine import hardware
from lorakit.planning import choose, memory
from lorakit.runs.folder import Folder, write_json
from lorakit.training.launch import Job

pytest.importorskip("ipywidgets")
from lorakit.notebook.studio import controller, tabs, uploads
from lorakit.notebook.studio.app import Studio
from lorakit.notebook.studio.controller import Desk
from lorakit.notebook.studio.estimate import Estimator

HOSTILE = '<img src=x onerror="hacked()"><script>hacked()</script>"\'&'
ROWS = b"prompt,completion\na?,b\n"


@pytest.fixture
def at(base, rows_file, tmp_path, monkeypatch):
    """A desk in a project's folder, with a model and a file in it."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "model").symlink_to(base)
    monkeypatch.chdir(project)
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = tiny_run(base, rows_file, project / "outputs", max_updates=3)
    return Desk(run, [base, Path(rows_file).parent])


# Uploads


@pytest.mark.parametrize(
    "name",
    [
        "../rows.csv",
        "..\\rows.csv",
        "/etc/rows.csv",
        "a/b.csv",
        "C:rows.csv",
        ".hidden.csv",
        " .csv",
        "",
        "rows.csv\0.txt",
        "rows\n.csv",
        "rows.csv.",
        "rows.exe",
        "rows",
        "rows.csv.zip",
        "a" * 300 + ".csv",
        "<b>.csv",
        "a\u202evsc.csv",
        "\ud800.csv",
        "..",
        "con\u2028.csv",
    ],
)
def test_names_that_are_no_name_of_a_data_file(at, name):
    with pytest.raises(LorakitError, match="upload '"):
        at.receive(name, ROWS)
    assert not (at.folder / "uploads").exists()


@pytest.mark.parametrize(
    "name", ["rows.csv", "Zeilen äöü 1.CSV", "a.b.jsonl", "ข้อมูล.txt", "rows.csv.gz"]
)
def test_names_that_are(at, name):
    content = gzip.compress(ROWS) if name.endswith(".gz") else ROWS
    path = at.receive(name, content, len(content)).data
    assert Path(path) == at.folder / "uploads" / name and Path(path).read_bytes() == content


def test_two_uploads_of_one_name_at_once(at):
    contents = [b"prompt,completion\n%d?,b\n" % i for i in range(12)]
    threads = [
        threading.Thread(target=uploads.receive, args=("rows.csv", c, at.folder / "uploads"))
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted((at.folder / "uploads").iterdir())
    assert {p.name for p in found} == {"rows.csv", *(f"rows-{i}.csv" for i in range(2, 13))}
    assert sorted(p.read_bytes() for p in found) == sorted(contents)


def test_an_upload_goes_through_no_link(at, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("kept")
    (at.folder / "uploads").mkdir(parents=True)
    (at.folder / "uploads/rows.csv").symlink_to(outside / "victim")
    assert Path(at.receive("rows.csv", ROWS).data).name == "rows-2.csv"
    assert (outside / "victim").read_text() == "kept"
    (at.folder / "uploads/rows.csv").unlink()
    (at.folder / "uploads/rows-2.csv").unlink()
    (at.folder / "uploads").rmdir()
    (at.folder / "uploads").symlink_to(outside)
    with pytest.raises(LorakitError, match="is a link to another folder"):
        at.receive("rows.csv", ROWS)
    assert [p.name for p in outside.iterdir()] == ["victim"]


def test_sizes_that_are_declared_and_sizes_that_come(at):
    with pytest.raises(LorakitError, match=r"rows.csv: 2,000 MB, and 500 MB is the most"):
        at.receive("rows.csv", ROWS, 2_000_000_000)
    with pytest.raises(LorakitError, match="23 of 99 bytes came"):
        at.receive("rows.csv", ROWS, 99)
    with pytest.raises(LorakitError, match="is empty"):
        at.receive("rows.csv", b"", 0)
    assert list((at.folder / "uploads").iterdir()) == []


def test_small_files_that_would_become_huge(at, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    bomb = gzip.compress(b"\0" * 30_000_000)
    assert len(bomb) < 100_000
    with pytest.raises(LorakitError, match=r"rows.csv.gz: unpacks to more than \d+ MB from 0.0 MB"):
        at.receive("rows.csv.gz", bomb)
    for broken in (bomb[:-2000], b"\x1f\x8b rubbish", b"nothing"):
        with pytest.raises(LorakitError, match=r"cannot be unpacked as gzip|unpacks to more"):
            at.receive("rows.csv.gz", broken)
    with zipfile.ZipFile(at.home / "z", "w") as file:
        file.writestr("../../rows.csv", ROWS)
    with pytest.raises(LorakitError, match=r"rows.csv: is a ZIP archive; unpack it"):
        at.receive("rows.csv", (at.home / "z").read_bytes())
    pq.write_table(pa.table({"text": pa.nulls(1_000_000)}), at.home / "p")
    monkeypatch.setattr(uploads, "CELLS", 500_000)
    with pytest.raises(LorakitError, match=r"holds 1,000,000 rows of 1 columns"):
        at.receive("rows.parquet", (at.home / "p").read_bytes())
    with pytest.raises(LorakitError, match="cannot be read as Parquet"):
        at.receive("rows.parquet", b"PAR1 no")
    assert list((at.folder / "uploads").iterdir()) == []


@pytest.fixture
def zone(at, monkeypatch):
    """Sends messages as a browser does: `zone(id, step, ...)` returns whether it was refused."""
    pytest.importorskip("anywidget")
    from lorakit.notebook.studio.drop import Drop

    answers, came, said = [], [], []
    drop = Drop(at.incoming, lambda incoming: came.append(at.keep(incoming).data), said.append)
    monkeypatch.setattr(drop, "send", answers.append)

    def message(mark, step, buffers=(), **more):
        drop._handle_custom_msg(
            {"id": mark, "step": step, **more}, [memoryview(b) for b in buffers]
        )
        assert answers[-1]["id"] == mark
        return answers[-1].get("refused", False)

    message.came, message.said, message.drop = came, said, drop
    return message


def test_a_file_in_pieces_and_another_between_them(zone, at):
    assert not zone("a", "begin", name="rows.csv", size=len(ROWS)) and not zone(
        "b", "begin", name="rows.csv", size=4
    )
    assert not zone("a", "piece", [ROWS[:9]], at=0) and not zone("b", "piece", [b"text"], at=0)
    assert (
        not zone("a", "piece", [ROWS[9:]], at=9) and not zone("a", "end") and not zone("b", "end")
    )
    assert [Path(p).name for p in zone.came] == ["rows.csv", "rows-2.csv"] and zone.said == []
    assert Path(zone.came[0]).read_bytes() == ROWS and Path(zone.came[1]).read_bytes() == b"text"
    assert {p.name for p in (at.folder / "uploads").iterdir()} == {"rows.csv", "rows-2.csv"}


def test_pieces_that_are_refused_leave_nothing(zone, at, monkeypatch):
    assert zone("a", "begin", name="../rows.csv", size=9) and zone(
        "a", "begin", name="rows.csv", size=2_000_000_000
    )
    monkeypatch.setattr(uploads, "LIMIT", 20)
    for steps in (
        [("piece", [b"x" * 21], 0)],  # more than was declared, and than is allowed
        [("piece", [b"x" * 5], 0), ("piece", [b"x" * 4], 7)],
        [("piece", [], 0)],
        [("stop", [], 0)],
        [("piece", [b"x" * 5], 0), ("unread", [], 5)],
        [("away", [], 0)],
    ):
        assert not zone("b", "begin", name="rows.csv", size=9)
        assert [
            zone("b", step, pieces, at=place, name="rows.csv") for step, pieces, place in steps
        ][-1]
        assert zone("b", "piece", [b"x"], at=0, name="rows.csv")  # it is gone
    words = [said.split(": ", 1)[1] for said in zone.said]
    assert words[0] == "this is no plain file name; rename the file" and words[1].startswith(
        "2,000 MB, and 500 MB is"
    )
    assert (
        words[2].startswith("0 MB, and 0 MB is the most")
        and words[3::2] == ["it was given up; send it again"] * 6
    )
    lost = "a piece was lost on the way; send it again"
    assert words[4::2] == [
        lost,
        lost,
        "cancelled",
        "the browser cannot read it; is it a folder, or gone?",
        lost,
    ]
    assert zone.came == [] and list((at.folder / "uploads").iterdir()) == []


def test_uploads_whose_page_is_gone_are_given_up(zone, at, monkeypatch):
    for i in range(8):
        assert not zone(f"{i}", "begin", name=f"{i}.csv", size=9)
    assert zone("8", "begin", name="8.csv", size=9) and "8 others are on their way" in zone.said[0]
    monkeypatch.setattr("lorakit.notebook.studio.drop.IDLE", -1)
    assert (
        not zone("8", "begin", name="8.csv", size=9)
        and len(list((at.folder / "uploads").iterdir())) == 1
    )
    part = at.folder / "uploads/tmp.part999999999"
    part.write_bytes(b"of a process that is gone")
    Desk(at.run)
    assert not part.exists()


# Paths


def test_nothing_outside_of_the_projects_folders_is_read(at, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_bytes(ROWS)
    here = Path.cwd()
    (here / "link.csv").symlink_to(secret)
    (here / "folder").mkdir()
    (here / "folder/link.csv").symlink_to(secret)
    (here / ".env.csv").write_bytes(ROWS)
    (here / "rows.csv").write_bytes(ROWS)
    before = at.run
    for path, words in (
        (secret, "lies outside"),
        ("../secret.csv", "lies outside"),
        ("link.csv", "lies outside"),
        ("folder", "is a link out of"),
        (".env.csv", "is hidden"),
        ("none.csv", "no such file"),
        ("/dev/null", "lies outside"),
        ("data/../../secret.csv", "no such file|lies outside"),
        ("rows.csv\0", "NUL|name a file"),
        ("~/x.csv", "no such file"),
    ):
        for change in (
            {"data": str(path)},
            {"test_data": str(path), "test_fraction": 0.0},
            {"model": str(path)},
        ):
            with pytest.raises(LorakitError, match=words):
                at.change(**change)
        with pytest.raises(LorakitError):
            at.read(f"data: {json.dumps(str(path))}")
    for settings in (
        {"output_dir": str(tmp_path)},
        {"output_dir": "/"},
        {"name": "../up"},
        {"name": "a/b"},
        {"format": {"parallel": {"other": str(secret)}}},
        {"format": {"csv": {"x": ["../secret.csv"]}}},
    ):
        with pytest.raises(LorakitError):
            at.change(**settings)
    assert at.run == before
    assert at.change(data="rows.csv").data == str(here / "rows.csv")
    assert at.change(data="data/triage.jsonl").data.endswith("data/triage.jsonl")
    assert (
        at.change(data="owner/name").data == "owner/name"
        and at.change(model="tiny").model == "tiny"
    )


def test_runs_are_known_by_name_alone(at, tmp_path):
    run = at.home / "run"
    write_json(run / "record.json", {"status": "done"})
    (at.home / "link").symlink_to(run)
    (at.home / "empty").mkdir()
    assert at.names() == ["run"]
    for name in ("../project", "link", "empty", "", ".", "run/..", str(run)):
        for call in (at.job, at.delete, at.resume, at.samples):
            with pytest.raises(LorakitError, match="there is no such run"):
                call(name)
    at.delete("run")
    assert not run.exists() and list(at.home.glob(".*")) == []


# What is shown


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


SAFE = {
    "div",
    "pre",
    "table",
    "tr",
    "th",
    "td",
    "caption",
    "svg",
    "path",
    "text",
    "polyline",
    "circle",
    "a",
    "style",
}


def tags(*texts):
    reader = Tags()
    for text in texts:
        reader.feed(text)
    assert reader.found <= SAFE, reader.found
    assert not [name for name in reader.attributes if name.startswith("on")]


def html_of(widget):
    """The HTML of a widget and of all in it."""
    import ipywidgets

    out = [widget.value] if isinstance(widget, ipywidgets.HTML) else []
    return out + [text for child in getattr(widget, "children", ()) for text in html_of(child)]


def test_nothing_that_a_user_wrote_becomes_markup(at, base, monkeypatch):
    monkeypatch.setattr(
        "lorakit.notebook.studio.app.threading",
        SimpleNamespace(
            Thread=lambda target, daemon: SimpleNamespace(
                start=lambda: None if "_live" in target.__qualname__ else target()
            )
        ),
    )
    at.folder.joinpath("uploads").mkdir(parents=True)
    monkeypatch.setattr("lorakit.notebook.studio.app.Desk", lambda *_: at)
    monkeypatch.setattr("lorakit.notebook.studio.app.PAUSE", 0)
    run = Folder(at.home / "bad")
    write_json(
        run / "record.json",
        {"status": "failed", "error": HOSTILE, "model": HOSTILE, "updates": HOSTILE},
    )
    run.append({"update": 1, "loss": 2.0, "seconds": 1.0, "target_tokens": 3})
    (run / "log.txt").write_text(HOSTILE)
    (run / "samples.jsonl").write_text(
        json.dumps({"update": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE}) + "\n"
    )
    studio = Studio(at.run)
    upload = studio.tabs["Upload"]
    rows = (
        "".join(
            json.dumps({"prompt": HOSTILE + str(i), "completion": HOSTILE, HOSTILE: HOSTILE}) + "\n"
            for i in range(30)
        )
        + json.dumps({"prompt": HOSTILE, "completion": [3]})
        + "\n"
    )
    upload.received(
        {"new": ({"name": "rows.jsonl", "content": memoryview(rows.encode()), "size": len(rows)},)}
    )
    assert "30 usable, 1 not" in upload.found.value and "&lt;script&gt;" in upload.rows.value
    upload.received(
        {"new": {HOSTILE: {"metadata": {"size": 3}, "content": b"abc"}}}
    )  # ipywidgets 7
    assert "this is no plain file name" in studio.message.value
    configure = studio.tabs["Configure"]
    for control in ("name", "model"):
        configure.controls[control].value = HOSTILE
        assert "&lt;img" in configure.plan.value, control
    configure.text.value = f"data: {json.dumps(HOSTILE)}"
    configure.read()
    configure.text.value = f"{HOSTILE}: ["
    configure.read()
    studio.looked_at = "bad"
    monkeypatch.setattr(controller, "_answers", lambda code, asked: [HOSTILE, HOSTILE])
    for title, tab in studio.tabs.items():
        studio.show(title)
        getattr(tab, "tick", lambda: None)()
    studio.tabs["Try"].question.value = HOSTILE
    studio.tabs["Try"].ask()
    studio.tabs["Jobs"].chosen.value = ["bad"]
    studio.tabs["Jobs"].compare()
    studio.tabs["Jobs"].ask()
    shown = [text for tab in studio.tabs.values() for text in html_of(tab.box)]
    assert sum(text.count("&lt;script&gt;") for text in shown) > 8
    tags(*shown, studio.message.value, tabs.words(HOSTILE), tabs.pre(HOSTILE))
    tags(tabs.table([HOSTILE], [[HOSTILE]], HOSTILE))


def test_every_control_has_a_label_and_every_tab_a_place(at, monkeypatch):
    import ipywidgets

    monkeypatch.setattr("lorakit.notebook.studio.app.Desk", lambda *_: at)
    studio = Studio(at.run)
    assert list(studio.tabs) == [
        "Upload",
        "Configure",
        "Train",
        "Progress",
        "Jobs",
        "Try",
        "Export",
    ]

    def every(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from every(child)

    controls = [
        w
        for tab in studio.tabs.values()
        for w in every(tab.box)
        if isinstance(w, ipywidgets.DOMWidget) and hasattr(w, "description")
    ]
    assert len(controls) > 30
    hidden = [w for w in controls if w.layout.display == "none"]
    plain = [w for w in controls if w not in hidden and not isinstance(w, ipywidgets.HTML)]
    assert all(w.description.strip() for w in plain), [
        w for w in plain if not w.description.strip()
    ]


def test_no_setting_is_out_of_reach(at):
    import yaml

    assert set(yaml.safe_load(at.text())) == set(lorakit.Run.model_fields)
    text = (
        at.text().replace("weight_decay: 0.0", "weight_decay: 0.25").replace("seed: 0", "seed: 7")
    )
    run = at.read(text)
    assert (run.weight_decay, run.seed, run.rank) == (0.25, 7, at.run.rank)
    with pytest.raises(LorakitError, match="unknown setting 'rnak'; did you mean 'rank'"):
        at.read(text + "rnak: 3\n")
    with pytest.raises(LorakitError, match="expected 'setting: value' lines"):
        at.read("[]")
    assert at.run == run


def test_a_page_that_is_opened_again_has_the_settings_of_before(at, base, rows_file):
    at.change(rank=4, name="mine")
    again = Desk(tiny_run(base, rows_file, at.home), [base, Path(rows_file).parent])
    assert (again.run.rank, again.run.name) == (4, "mine")
    (at.folder / "settings.yaml").write_text("rank: [")
    assert Desk(tiny_run(base, rows_file, at.home), [base, Path(rows_file).parent]).run.rank == 16


# The plan

FACTS = hardware.Facts(memory=2**30, cores=2, disk_free=10**11, packages={"torch": "2.13.0"})


def test_a_slider_is_answered_at_once_and_exactly(at):
    estimator = Estimator(str(at.home), hardware.facts(str(at.home)))
    run = at.run.with_(max_length=512, micro_batch_tokens=512, micro_batch_size=1)
    assert estimator.quick(run) is None  # nothing counted yet
    exact = estimator.learn(run)
    for change in (
        {},
        {"rank": 64},
        {"learning_rate": 1e-5},
        {"epochs": 9},
        {"rank": 4, "name": "other"},
        {"max_length": 1024, "micro_batch_tokens": 1024},
    ):
        moved = run.with_(**change)
        begun = time.perf_counter()
        found = estimator.quick(moved)
        assert time.perf_counter() - begun < 0.15
        want = memory.memory(choose.resolve(moved, estimator.facts)[0])["total"]
        assert found.memory == pytest.approx(want, rel=0.02), change
    assert estimator.quick(run) == exact and exact.fits
    assert estimator.quick(run.with_(method="full")) is None  # to be counted first


def test_a_refusal_stays_when_an_estimate_comes_in_later(at, monkeypatch):
    monkeypatch.setattr("lorakit.notebook.studio.app.Desk", lambda *_: at)
    late = []
    monkeypatch.setattr(
        Studio, "later", lambda self, work, then, failed=None: late.append(lambda: then(work()))
    )
    monkeypatch.setattr("lorakit.notebook.studio.app.PAUSE", 0)
    configure = Studio(at.run).tabs["Configure"]
    configure.controls["rank"].value = 32
    configure.controls["name"].value = "a/b"
    refusal = configure.plan.value
    assert "lk-error" in refusal and "a/b" in refusal and late
    for came in late:
        came()
    assert configure.plan.value == refusal and (at.run.rank, at.run.name) == (32, "run")


def test_what_cannot_fit_is_refused_before_it_starts_with_what_would(at):
    at.estimator = Estimator(
        str(at.home),
        hardware.Facts(
            memory=12_000_000,
            cores=2,
            disk_free=10**11,
            packages={"torch": "2.13.0", "bitsandbytes": "0.50"},
        ),
    )
    at.change(max_length=2048)
    with pytest.raises(
        LorakitError, match="are needed and 0.0 GB are there, one row at a time; it would fit"
    ):
        at.start()
    assert at.names() == []


# Runs


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_start_stop_resume_try_and_download(at):
    at.change(name="one", max_updates=1_000_000, checkpoint_every=1_000_000, validate_every=0)
    one = at.start()
    until(lambda: len(one.folder.history()[0]) > 2)
    at.change(name="two", max_updates=2)
    two = at.start()
    assert {j["name"]: j["status"] for j in at.jobs()} == {"one": "running", "two": "queued"}
    with pytest.raises(LorakitError, match="one: is running; stop it first"):
        at.delete("one")
    Job(one.folder.path).stop()  # as a page that was opened again does
    assert (
        at._line("one")["status"] == "stopped" and "stopped on request" in at._line("one")["error"]
    )
    until(lambda: not two.running)
    assert at._line("two")["status"] == "done"
    again, done = at.resume("one"), len(one.folder.history()[0])
    until(lambda: len(one.folder.history()[0]) > done)
    again.stop()
    base, tuned = at.ask("two", "abc? \"'<b> -x\n")
    assert isinstance(base, str) and isinstance(tuned, str)
    with pytest.raises(LorakitError, match="has nothing saved yet"):
        at.ask("one", "abc?")
    words, picture = at.compare(["one", "two"])
    assert "max_updates: " in words and picture[:4] == b"\x89PNG"
    packed = at.packed(at.home / "two/adapter")
    assert "adapter_config.json" in zipfile.ZipFile(packed).namelist()
    assert [s["update"] for s in at.samples("two")[:2]] == ["before", "after"]


def test_a_damaged_run_hides_no_other(at):
    write_json(at.home / "good/record.json", {"status": "done", "updates": 3})
    (at.home / "bad").mkdir()
    (at.home / "bad/record.json").write_text("{")
    found = {j["name"]: j for j in at.jobs()}
    assert found["good"]["status"] == "done" and found["bad"]["status"] == "damaged"
    assert "is damaged" in found["bad"]["error"]


def test_rows_are_left_out_of_a_copy(at):
    content = ROWS + b"c?,\nc?,d\n" + b"".join(b"%d?,e\n" % i for i in range(9))
    at.receive("rows.csv", content)
    assert len(at.check().report.rejected) == 1
    assert Path(at.leave_out().data).name == "rows.clean.jsonl" and not at.check().report.rejected
    assert Path(at.folder / "uploads/rows.csv").read_bytes() == content


def test_a_wide_file_as_it_was_published(real_data, tmp_path, monkeypatch):
    """45 columns: unusable until two of them are named."""
    monkeypatch.chdir(tmp_path)
    at = Desk(lorakit.Run(data="data/triage.jsonl", output_dir=str(tmp_path / "outputs")))
    file = real_data / "disaster_response/disaster_response_validation.csv"
    at.receive(file.name, file.read_bytes(), os.path.getsize(file))
    columns, rows = at.head()
    assert len(columns) == 45 and columns[1:3] == ["split", "message"] and len(rows) == 5
    with pytest.raises(LorakitError, match="fit no schema"):
        at.check()
    at.change(columns={"text": "message", "label": "genre"})
    assert re.search("2,33[67] usable", "\n".join(at.check().lines()))
