"""Every notebook runs whole, at the small parameters that its own metadata names (`lorakit.test_parameters`).

One that names a model of the hub is rehearsed: on the same architecture, shrunken. One that takes long says so in its
metadata (`lorakit.slow`); `make notebooks` runs them all.
"""

import json

import pytest
from helpers.installed import only_the_extra
from helpers.paths import ROOT

from lorakit.notebook.execute import execute
from lorakit.notebook.rehearse import parameters, rehearse

papermill = pytest.importorskip("papermill")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


def said(path):
    """What a notebook's metadata say to its test."""
    return json.loads(path.read_text(encoding="utf-8"))["metadata"].get("lorakit", {})


def test_the_shortest_way_is_run_every_time():
    assert not said(NOTEBOOKS[0].with_name("quickstart.ipynb")).get("slow")
    assert sum(bool(said(path).get("slow")) for path in NOTEBOOKS) < 0.7 * len(NOTEBOOKS)


def marks(path):
    return [pytest.mark.slow] if said(path).get("slow") else []


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=marks(path)) for path in NOTEBOOKS]
)
def test_notebook_runs(path, tmp_path, monkeypatch):
    if path.stem == "quickstart":  # `make quickstart` installs no more than this
        monkeypatch.setenv("PYTHONPATH", only_the_extra("quickstart", tmp_path / "site"))
    small = said(path).get("test_parameters", {})
    known = parameters(path)
    if "output_dir" in known:
        small = {**small, "output_dir": str(tmp_path / "runs")}
    if known.get("model", "tiny") == "tiny":
        copy = execute(path, small, tmp_path / "notebooks")
    else:
        copy = rehearse(path, small)
    cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
    shown = [out for cell in cells for out in cell.get("outputs", [])]
    assert not [out for out in shown if out["output_type"] == "error"]
    assert not ["".join(out["text"]) for out in shown if out.get("name") == "stderr"], "no warnings"
    wanted = "application/vnd.jupyter.widget-view+json" if said(path).get("page") else "image/png"
    assert any(wanted in out.get("data", {}) for out in shown), "a picture that needs no browser"
    for record in (tmp_path / "runs").rglob("record.json"):
        assert json.loads(record.read_text(encoding="utf-8"))["status"] == "done", record
