"""Child processes import nothing from the working folder."""

import json
import subprocess
import sys

import nbformat

from lorakit.machine.hardware import child_environment
from lorakit.notebook.execute import execute

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def planted(folder):
    for name in ("json", "tqdm", "yaml", "evaluate"):
        (folder / f"{name}.py").write_text(
            f"open('ran_{name}', 'w').close()\nraise SystemExit(9)\n"
        )


def test_a_module_beside_the_data_does_not_run(tmp_path):
    planted(tmp_path)
    for command in (["-m", "lorakit.cli", "--version"], ["-c", "import json, tqdm, yaml"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=child_environment(), capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("ran_*"))


def test_a_module_beside_a_notebook_does_not_run(tmp_path, monkeypatch):
    planted(tmp_path)
    monkeypatch.chdir(tmp_path)
    cells = [
        nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import json, tqdm, yaml\nprint(json.__file__)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), "n.ipynb")
    out = execute("n.ipynb", {})
    assert not list(tmp_path.glob("ran_*"))
    assert str(tmp_path) not in json.dumps(nbformat.read(out, 4)["cells"][-1]["outputs"])
