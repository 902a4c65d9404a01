"""`kill -9` at random moments: nothing half-written stands under a final name, and the next start ends what was begun."""

import contextlib
import json
import shutil
import sqlite3

import pytest
from helpers import kills

import lorakit
from lorakit.exporting.messages import read
from lorakit.models import identity
from lorakit.notebook.bundle.pack import verify
from lorakit.runs.folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(tmp_path, base, rows_file, request):
    """Makes the folder in which a piece of work is killed, anew for each moment."""

    def make(name, work):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "asked.json").write_text(
            json.dumps({"base": base, "rows": str(folder / "rows.jsonl")})
        )
        shutil.copyfile(rows_file, folder / "rows.jsonl")
        if work is kills.export:
            shutil.copytree(request.getfixturevalue("finished").path, folder / "run")
        return folder

    return make


def whole_cache(folder, ended):
    """Every entry of the cache has the files that a whole one has."""
    entries = [p for p in (folder / "cache").glob("*") if p.is_dir() and len(p.name) == 32]
    assert all(
        {"rows", "report.json", "media.json"} <= {f.name for f in e.iterdir()} for e in entries
    )
    assert all(len(lorakit.tasks.rows.read(e / "rows", None)[0]["train"]) for e in entries)
    return len(entries) == 1 if ended else True


def whole_export(folder, ended):
    out = folder / "run/export/merged-fp32"
    if not ended and not out.exists():
        return True
    recorded = {name: each["sha256"] for name, each in read(out)["files"].items()}
    return identity.files(out, recorded) == recorded and (out / "model.safetensors").is_file()


def whole_runs(folder, ended):
    """Whatever can be read is whole; a run that says done has all that belongs to it."""
    for path in (folder / "outputs").rglob("record.json"):
        run = RunFolder(path.parent)
        run.history(), run.scores
        if run.record["status"] == "done":
            recorded = run.record["files"]
            assert identity.files(run.path, ("adapter", "rows")) == recorded
    return not ended or RunFolder(folder / "outputs/run").record["status"] == "done"


def whole_search(folder, ended):
    """The study can be read at any moment; at the end it knows how two trials ended."""
    study = folder / "outputs/search/study.db"
    if not study.exists():
        return not ended
    with contextlib.closing(sqlite3.connect(study)) as found:
        assert found.execute("pragma integrity_check").fetchall() == [("ok",)]
        query = "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"
        return not ended or found.execute(query).fetchone()[0] == 2


def whole_upload(folder, ended):
    kept = list((folder / "outputs/+studio/uploads").glob("mine*.jsonl"))
    wanted = (folder / "rows.jsonl").read_bytes()
    assert all(p.read_bytes() == wanted for p in kept)
    settings = folder / "outputs/+studio/settings.yaml"
    if settings.exists():
        lorakit.Run.read(settings)
    return len(kept) >= 1 if ended else True


def whole_bundle(folder, ended):
    out = folder / "bundle"
    if not ended and not out.exists():
        return True
    return "all as packed" in verify(out)


def whole_row(folder, ended):
    row = folder / "row"
    noted = json.loads((row / "row.json").read_text()) if (row / "row.json").exists() else {}
    if noted.get("status") == "done":
        assert json.loads((row / "n.ipynb").read_text())["cells"] == [{"rank": 4}]
    return not ended or noted["status"] == "done"


WORK = {
    "cache": (kills.cache, whole_cache),
    "export": (kills.export, whole_export),
    "folds": (kills.folds, whole_runs),
    "search": (kills.search, whole_search),
    "upload": (kills.upload, whole_upload),
    "bundle": (kills.bundle, whole_bundle),
    "grid": (kills.grid_row, whole_row),
}


@pytest.mark.parametrize("name", WORK)
def test_kills(processes, scene, name):
    work, whole = WORK[name]
    first = scene("uncut", work)
    code, changes = kills.run(processes, work, first)
    assert code == 0, (first.parent / "uncut.err").read_text()
    assert whole(first, True)
    for moment in kills.moments(changes):
        folder = scene(f"cut{moment}", work)
        code, _ = kills.run(processes, work, folder, moment)
        assert code == -9, f"moment {moment} of {changes}"
        assert whole(folder, False), f"killed at moment {moment} of {changes}"
        code, _ = kills.run(processes, work, folder)
        assert code == 0, (
            f"after moment {moment}: {(folder.parent / f'{folder.name}.err').read_text()[-2000:]}"
        )
        assert whole(folder, True), f"ended after moment {moment} of {changes}"
        assert kills.half_written(folder) == [], f"moment {moment}"
        shutil.rmtree(folder)
