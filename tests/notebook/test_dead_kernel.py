"""A kernel that is killed ends in one message that names the cell."""

import nbformat
import pytest

from lorakit.common.errors import LorakitError
from lorakit.notebook.execute import execute


def test_a_killed_kernel_is_named_with_its_cell(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    ]
    path = tmp_path / "killed.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    with pytest.raises(
        LorakitError, match=r"the kernel was killed in cell 1 \(import os, signal\)"
    ) as found:
        execute(path, {}, tmp_path / "outputs")
    assert found.value.where == str(path) and "micro_batch_size" in found.value.cure
