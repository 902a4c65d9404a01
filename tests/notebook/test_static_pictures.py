"""A notebook that papermill executed, as static HTML: pictures stand where the live panel and the curve were."""

import nbformat
import pytest

from lorakit.notebook.execute import execute
from lorakit.runs.folder import Folder

CODE = """
import lorakit
from lorakit.notebook.live import Panel
from lorakit.runs.folder import Folder
panel = Panel(Folder(run))
panel.draw("running")
panel.draw("done", last=True)
"""


@pytest.mark.slow
def test_pictures_stand_where_panel_and_curve_were(tmp_path):
    nbconvert = pytest.importorskip("nbconvert")
    folder = Folder(tmp_path / "run")
    folder.path.mkdir()
    for update in range(1, 9):
        folder.append({"update": update, "loss": 8 / update, "target_tokens": 5, "seconds": 0.1})
    folder.append({"update": 8, "validation_loss": 1.5})
    folder.note(status="done", updates_planned=8)
    cells = [
        nbformat.v4.new_code_cell('run = "run"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(CODE),
        nbformat.v4.new_code_cell("lorakit.curve(run)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, tmp_path / "watch.ipynb")
    executed = execute(tmp_path / "watch.ipynb", {"run": str(folder.path)}, tmp_path / "out")
    made = nbformat.read(executed, as_version=4)
    panel, curve = [c["outputs"] for c in made.cells if c.cell_type == "code"][-2:]
    for outputs in (panel, curve):
        assert [o for o in outputs if "image/png" in o.get("data", {})]
        assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o["data"]]
    page, _ = nbconvert.HTMLExporter().from_notebook_node(made)
    assert page.count("data:image/png;base64,") >= 2 and "done" in page
