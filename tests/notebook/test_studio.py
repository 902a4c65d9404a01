"""The studio without a browser: what it lets in, what it refuses, how it answers. In a browser: test_studio_browser."""

import contextlib
import gzip
import json
import os
import re
import threading
import time
import zipfile
from pathlib import Path

import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.common import processes
from lorakit.common.errors import LorakitError
from lorakit.machine import hardware
from lorakit.runs.folder import Folder, write_json, write_lines
from lorakit.training.launch import Job

pytest.importorskip("ipywidgets")
pytest.importorskip("ipyvuetify")
from lorakit.notebook.studio import columns, controller, incoming, uploads
from lorakit.notebook.studio.app import Studio
from lorakit.notebook.studio.controller import Desk

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


def receive(desk, name, content, declared=None):
    """An upload that comes in one piece; the settings that then hold."""
    upload = desk.incoming(name, declared)
    with contextlib.closing(upload):
        upload.add(content)
        desk.keep(upload)
    return desk.run


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
        receive(at, name, ROWS)
    assert not (at.folder / "uploads").exists()


@pytest.mark.parametrize(
    "name", ["rows.csv", "Zeilen äöü 1.CSV", "a.b.jsonl", "ข้อมูล.txt", "rows.csv.gz"]
)
def test_names_that_are(at, name):
    content = gzip.compress(ROWS) if name.endswith(".gz") else ROWS
    path = receive(at, name, content, len(content)).data
    assert Path(path) == at.folder / "uploads" / name and Path(path).read_bytes() == content


def test_two_uploads_of_one_name_at_once(at):
    contents = [b"prompt,completion\n%d?,b\n" % i for i in range(12)]

    def send(content):
        with contextlib.closing(at.incoming("rows.csv", len(content))) as upload:
            upload.add(content)
            upload.keep()

    threads = [threading.Thread(target=send, args=(c,)) for c in contents]
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
    assert Path(receive(at, "rows.csv", ROWS).data).name == "rows-2.csv"
    assert (outside / "victim").read_text() == "kept"
    (at.folder / "uploads/rows.csv").unlink()
    (at.folder / "uploads/rows-2.csv").unlink()
    (at.folder / "uploads").rmdir()
    (at.folder / "uploads").symlink_to(outside)
    with pytest.raises(LorakitError, match="is a link to another folder"):
        receive(at, "rows.csv", ROWS)
    assert [p.name for p in outside.iterdir()] == ["victim"]


def test_sizes_that_are_declared_and_sizes_that_come(at):
    with pytest.raises(LorakitError, match=r"rows.csv: 2,000 MB, and 500 MB is the most"):
        receive(at, "rows.csv", ROWS, 2_000_000_000)
    with pytest.raises(LorakitError, match="23 of 99 bytes came"):
        receive(at, "rows.csv", ROWS, 99)
    with pytest.raises(LorakitError, match="is empty"):
        receive(at, "rows.csv", b"", 0)
    assert list((at.folder / "uploads").iterdir()) == []


def test_small_files_that_would_become_huge(at, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    bomb = gzip.compress(b"\0" * 30_000_000)
    assert len(bomb) < 100_000
    with pytest.raises(LorakitError, match=r"rows.csv.gz: unpacks to more than \d+ MB from 0.0 MB"):
        receive(at, "rows.csv.gz", bomb)
    for broken in (bomb[:-2000], b"\x1f\x8b rubbish", b"nothing"):
        with pytest.raises(LorakitError, match=r"cannot be unpacked as gzip|unpacks to more"):
            receive(at, "rows.csv.gz", broken)
    with zipfile.ZipFile(at.home / "z", "w") as file:
        file.writestr("../../rows.csv", ROWS)
    with pytest.raises(LorakitError, match=r"rows.csv: is a ZIP archive; name it .zip"):
        receive(at, "rows.csv", (at.home / "z").read_bytes())
    pq.write_table(pa.table({"text": pa.nulls(1_000_000)}), at.home / "p")
    monkeypatch.setattr(uploads, "CELLS", 500_000)
    with pytest.raises(LorakitError, match=r"holds 1,000,000 rows of 1 columns"):
        receive(at, "rows.parquet", (at.home / "p").read_bytes())
    with pytest.raises(LorakitError, match="cannot be read as Parquet"):
        receive(at, "rows.parquet", b"PAR1 no")
    assert list((at.folder / "uploads").iterdir()) == []


@pytest.fixture
def page(at, monkeypatch):
    """A studio whose threads run at once, and whose clock stands still."""
    monkeypatch.setattr(Studio, "_live", lambda self: None)
    monkeypatch.setattr(Studio, "later", lambda self, words, work: self.tried(work))
    monkeypatch.setattr("lorakit.notebook.studio.page.Desk", lambda *_: at)
    return Studio(at.run)


def sent(page, name, content, size=None, pieces=4):
    """Sends a file as the page does; the last acknowledgement."""
    page.vue_begin({"id": "a", "name": name, "size": len(content) if size is None else size})
    for place in range(0, len(content), pieces):
        end = min(place + pieces, len(content))
        if page.acknowledged.endswith("refused"):
            break
        page.vue_piece({"id": "a", "end": end}, [memoryview(content[place:end])])
    return page.acknowledged


def test_a_file_in_pieces(page, at):
    assert sent(page, "rows.csv", ROWS) == f"a:{len(ROWS)}"
    assert Path(at.run.data).read_bytes() == ROWS and page.table["name"] == "rows.csv"
    assert page.table["columns"] == ["prompt", "completion"] and page.table["rows"] == [["a?", "b"]]
    assert "1 row can be used." in page.table["verdict"]


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("../rows.csv", 9, "this is no plain file name"),
        ("rows.csv", 2_000_000_000, "500 MB is the most"),
        (HOSTILE, 9, "this is no plain file name"),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing(page, at, name, size, words):
    assert sent(page, name, ROWS, size) == "a:refused"
    assert words in page.message["text"] and page.message["kind"] == "error"
    assert not list((at.folder / "uploads").glob("*"))


def test_a_piece_that_is_lost_ends_an_upload(page, at):
    page.vue_begin({"id": "a", "name": "rows.csv", "size": 9})
    page.vue_piece({"id": "a", "end": 8}, [memoryview(b"1234")])
    assert page.acknowledged == "a:refused" and "a piece was lost" in page.message["text"]
    page.vue_piece({"id": "a", "end": 9}, [memoryview(b"5")])  # it is gone
    assert page.acknowledged == "a:refused" and not list((at.folder / "uploads").iterdir())


def test_an_upload_whose_page_is_gone_is_given_up(page, at):
    page.vue_begin({"id": "a", "name": "one.csv", "size": 9})
    page.vue_begin({"id": "b", "name": "two.csv", "size": 9})
    assert len(list((at.folder / "uploads").iterdir())) == 1
    part = at.folder / f"uploads/tmp{processes.part(999999999)}"
    part.write_bytes(b"of a process that is gone")
    Desk(at.run)
    assert not part.exists()


# What people have


def test_an_excel_file_with_german_columns(page, at):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [
        ("Nr", "Frage", "Antwort"),
        (1, "Wann öffnet ihr?", "Um acht."),
        (2, "Wo?", "Hier"),
    ]:
        sheet.append(row)
    book.save(at.home / "x.xlsx")
    sent(page, "Anfragen.xlsx", (at.home / "x.xlsx").read_bytes(), pieces=5000)
    assert page.table["name"] == "Anfragen.xlsx"
    assert page.mapping["role"] == "chat"
    assert [p["column"] for p in page.mapping["parts"]] == ["Frage", "Antwort"]
    assert page.mapping["preview"][0] == {"read": "Wann öffnet ihr?", "answer": "Um acht."}
    assert at.run.columns == {"prompt": "Frage", "answer": "Antwort"} and at.run.name == "Anfragen"


@pytest.mark.parametrize(
    ("encoding", "said"), [("cp1252", "Windows-1252"), ("utf-16", "UTF-16"), ("utf-8", "")]
)
def test_text_as_windows_writes_it(page, at, encoding, said):
    text = "Frage;Antwort\nWann öffnet die Praxis – heute?;Um acht für 5 €.\n"
    sent(page, "praxis.csv", text.encode(encoding), pieces=50)
    assert Path(at.run.data).read_text(encoding="utf-8") == text
    assert said in page.table["verdict"] and ("Read as" in page.table["verdict"]) == bool(said)
    assert page.mapping["preview"][0]["answer"] == "Um acht für 5 €."


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_zip_of_pictures_is_a_folder_per_class(tmp_path):
    names = [
        "top/rust/a.png",
        "top/rust/b.PNG",
        "top/spot/c.jpg",
        "top/notes.doc",
        "__MACOSX/x.png",
    ]
    folder, said = incoming.usable(zipped(tmp_path / "leaves.zip", **dict.fromkeys(names, b"x")))
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["rust/a.png", "rust/b.PNG", "spot/c.jpg"] and said == "Unpacked 3 files"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../a.png", b"x", "leads out of its folder"),
        ("/etc/a.png", b"x", "leads out of its folder"),
        ("a\\b.png", b"x", "leads out of its folder"),
        ("a.exe", b"x", "holds no picture, sound or table"),
        ("a.png", b"\0" * 60_000_000, "unpacks to 1 files of 60 MB"),
    ],
)
def test_a_zip_that_is_refused_leaves_nothing(tmp_path, name, content, words):
    path = (
        zipped(tmp_path / "in/x.zip", **{name: content}) if (tmp_path / "in").mkdir() is None else 0
    )
    with pytest.raises(LorakitError, match=words):
        incoming.usable(path)
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["x.zip"]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# Columns


@pytest.mark.parametrize(
    ("names", "row", "role", "chosen"),
    [
        (["Nr", "Frage", "Antwort"], ["1", "Wann?", "Um acht"], "chat", ["Frage", "Antwort"]),
        (["pregunta", "respuesta"], ["a", "b"], "chat", ["pregunta", "respuesta"]),
        (
            ["id", "message", "genre", "Kategorie"],
            ["1", "a b", "x", "y"],
            "class",
            ["message", "Kategorie"],
        ),
        (["a", "b", "c"], ["1", "a long text", "a longer text still"], "chat", ["b", "c"]),
        (["prompt", "completion"], ["a", "b"], "", []),
        (["messages"], ["[]"], "", []),
        ([], [], "", []),
    ],
)
def test_columns_are_guessed_by_name_and_by_length(names, row, role, chosen):
    found = columns.guessed(names, [row] if row else [])
    assert found["role"] == role and [p["column"] for p in found["parts"]] == chosen


def test_a_choice_of_columns_shows_what_will_be_learnt(page, at):
    sent(page, "rows.csv", b"Thema,Inhalt\nA,Ein Text\nB,Noch ein Text\n", pieces=99)
    page.vue_map({"role": "class"})
    page.vue_map({"text": "Inhalt"})
    page.vue_map({"label": "Thema"})
    assert at.run.columns == {"text": "Inhalt", "label": "Thema"}
    assert page.mapping["preview"][1] == {"read": "Noch ein Text", "answer": "B"}
    page.vue_map({"label": "no such column"})
    assert at.run.columns["label"] == "Thema"


# The steps


def test_every_step_can_be_opened_before_anything_was_done(page):
    for step in range(1, 8):
        page.vue_go(step)
        assert page.step == step and page.message["kind"] != "error", page.message
    assert page.done == [1, 2, 3, 4, 5, 6] and "tiny" in [m["name"] for m in page.models]
    assert [m["name"] for m in page.models if m["recommended"]] == ["smollm2-135m"]


def test_presets_and_single_settings(page, at):
    page.vue_pick("thorough")
    assert (at.run.epochs, at.run.rank, at.run.early_stopping, page.preset) == (
        6,
        32,
        3,
        "thorough",
    )
    page.vue_pick("quick")
    assert (at.run.epochs, at.run.rank, at.run.early_stopping, page.preset) == (
        1,
        16,
        None,
        "quick",
    )
    page.vue_set({"name": "learning_rate", "value": "10"})
    assert at.run.learning_rate == 10 and "10 is 50,000 times the usual" in page.plan["text"]
    page.vue_set({"name": "rank", "value": "many"})
    assert at.run.rank == 16 and "rank='many'" in page.message["text"]
    page.vue_set({"name": "columns", "value": "{a: [b"})
    assert "columns: '{a: [b' cannot be read as YAML" in page.message["text"]
    page.vue_set({"name": "early_stopping", "value": ""})
    assert at.run.early_stopping is None


def test_every_setting_is_shown_with_its_description(page):
    shown = {s["name"]: s for s in page.settings}
    assert {*shown, "data", "name", "output_dir"} == set(lorakit.Run.model_fields)
    assert all(s["help"] for s in shown.values())
    assert shown["method"]["choices"] == ["lora", "full"] and shown["use_dora"]["choices"] == [
        True,
        False,
    ]


class Said:
    """A chat that answers at once."""

    def ask(self, question, adapted=True, system=""):
        yield from ("tuned ", HOSTILE) if adapted else ("base",)

    def forget(self):
        pass


@pytest.fixture
def scored(page, at):
    """A run that is done, and looked at."""
    run = Folder(at.home / "run")
    write_json(run / "record.json", {"status": "done", "data": {"task": "chat"}, "metrics": {}})
    entry = {"before": 0.0, "after": 0.9, "difference": 0.9, "interval": [0.8, 1.0], "rows": 40}
    write_json(run / "scores.json", {"exact_match": {**entry, "higher_is_better": True}})
    answers = [
        {"prompt": f"{i}?", "reference": "b", "before": "c", "after": "b"} for i in range(40)
    ]
    write_lines(run / "answers.jsonl", answers)
    page.tick()
    page.vue_look("run")
    return page


def test_the_result_says_whether_it_got_better(scored):
    assert scored.step == 6 and scored.result["kind"] == "better"
    assert scored.result["headline"].startswith("Better: 36 of 40 test answers are exactly right")
    assert scored.result["scores"][0]["metric"] == "exact match"
    assert scored.runs[0]["score"] == "exact match 0 → 0.9"


def test_a_chat_shows_both_models_and_keeps_a_correction(scored, at, monkeypatch):
    monkeypatch.setattr(at, "talk", lambda name: Said())
    scored.vue_go(7)
    assert scored.chat["examples"] == ["0?", "1?", "2?"]
    scored.vue_beside(True)
    scored.vue_ask("why?")
    (turn,) = scored.chat["turns"]
    assert turn == {"question": "why?", "answer": f"tuned {HOSTILE}", "base": "base", "ended": True}
    scored.vue_correct({"turn": 0, "answer": "because"})
    kept = at.folder / "uploads/run-corrections.jsonl"
    assert json.loads(kept.read_text()) == {"prompt": "why?", "completion": "because"}
    scored.vue_forget({})
    assert scored.chat["turns"] == []


def test_an_export_that_fails_says_why_and_stays_where_it_is(scored, at, monkeypatch):
    def fail(*_):
        raise LorakitError("no room")

    monkeypatch.setattr(controller, "answers_of", fail)
    scored.vue_make({"target": "gguf", "type": "q8_0"})
    assert scored.exported == {"text": "no room", "kind": "error"}
    scored.vue_push({"repository": "", "token": ""})
    assert "name a repository and a token" in scored.message["text"]


def test_a_run_is_cloned_under_a_name_that_is_free(scored, at):
    write_json(at.home / "run/asked.json", at.run.with_(rank=4).given())
    scored.vue_clone({})
    assert (at.run.rank, at.run.name, scored.step) == (4, "run-2", 4)


def test_the_page_runs_nothing_that_a_user_wrote():
    """What is shown as HTML is drawn by us alone; a report is in a frame that runs nothing."""
    page = (Path(controller.__file__).parent / "studio.vue").read_text()
    assert re.findall(r'v-html="([^"]*)"', page) == ["run.curve"]
    assert re.findall(r"<iframe ([a-z]+) ", page) == ["sandbox"] and "eval(" not in page


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
            {"data": [str(path)]},
            {"replay": {str(path): 0.2}},
            {"chat_template": str(path)},
        ):
            with pytest.raises(LorakitError, match=words):
                at.change(**change)
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
    assert at.change(data={"rows.csv": 2.0}).data == {str(here / "rows.csv"): 2.0}
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


def test_a_page_that_is_opened_again_has_the_settings_of_before(at, base, rows_file):
    at.change(rank=4, name="mine")
    again = Desk(tiny_run(base, rows_file, at.home), [base, Path(rows_file).parent])
    assert (again.run.rank, again.run.name) == (4, "mine")
    (at.folder / "settings.yaml").write_text("rank: [")
    assert Desk(tiny_run(base, rows_file, at.home), [base, Path(rows_file).parent]).run.rank == 16


def test_what_cannot_fit_is_refused_before_it_starts_with_what_would(at):
    at.facts = hardware.Facts(
        memory=1_000_000,
        cores=2,
        disk_free=10**11,
        packages={"torch": "2.13.0", "bitsandbytes": "0.50"},
    )
    at.change(max_length=2048)
    with pytest.raises(LorakitError, match="0.0 GB"):
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
    talk = at.talk("two")
    answers = ["".join(talk.ask("abc? \"'<b> -x\n", adapted=adapted)) for adapted in (True, False)]
    child = talk._child
    assert "".join(talk.ask("abc?")) is not None and talk._child is child  # it stays loaded
    talk.forget()
    assert "".join(talk.ask("abc? \"'<b> -x\n")) == answers[0]
    with pytest.raises(LorakitError, match="has nothing saved yet"):
        list(at.talk("one").ask("abc?"))
    assert child.poll() is not None  # it gave its memory back
    at.talk("one").close()
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
    receive(at, "rows.csv", content)
    assert len(at.check().report.rejected) == 1
    assert Path(at.leave_out().data).name == "rows.clean.jsonl" and not at.check().report.rejected
    assert Path(at.folder / "uploads/rows.csv").read_bytes() == content


def test_a_wide_file_as_it_was_published(real_data, tmp_path, monkeypatch):
    """45 columns: unusable until two of them are named."""
    monkeypatch.chdir(tmp_path)
    at = Desk(lorakit.Run(data="data/triage.jsonl", output_dir=str(tmp_path / "outputs")))
    file = real_data / "disaster_response/disaster_response_validation.csv"
    receive(at, file.name, file.read_bytes(), os.path.getsize(file))
    columns, rows = at.head()
    assert len(columns) == 45 and columns[1:3] == ["split", "message"] and len(rows) == 5
    with pytest.raises(LorakitError, match="fit no schema"):
        at.check()
    at.change(columns={"text": "message", "label": "genre"})
    assert re.search("2,33[67] rows can be used", "\n".join(at.check().lines()))
