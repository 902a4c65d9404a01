"""Every notebook runs whole, at the small parameters that its own metadata names (`lorakit.test_parameters`).

One that names a model of the hub is rehearsed: on the same architecture, shrunken.
"""

import json
from pathlib import Path

import pytest

from lorakit.notebook import execute
from lorakit.rehearse import parameters, rehearse

papermill = pytest.importorskip("papermill")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path):
    small = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("lorakit", {}).get("test_parameters", {})
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
    assert any("image/png" in out.get("data", {}) for out in shown), "a picture that needs no browser"
    for record in (tmp_path / "runs").rglob("record.json"):
        assert json.loads(record.read_text(encoding="utf-8"))["status"] == "done", record
