"""A kernel that is killed ends in one message that names the cell."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from helpers.paths import ROOT

from lorakit.common.errors import LorakitError
from lorakit.notebook.execute import execute

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def test_a_killed_kernel_is_named_with_its_cell(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    ]
    path = tmp_path / "killed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), path)
    with pytest.raises(
        LorakitError, match=r"the kernel was killed in cell 1 \(import os, signal\)"
    ) as found:
        execute(path, {}, tmp_path / "outputs")
    assert found.value.where == str(path) and "micro_batch_size" in found.value.cure


def test_a_kernel_that_works_writes_nothing_to_the_terminal(tmp_path):
    cells = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "short.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "lorakit.cli", "run", "short.ipynb"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    assert lines and all(line.startswith("Executing: ") for line in lines), lines
