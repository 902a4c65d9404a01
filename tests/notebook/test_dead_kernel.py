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


def test_a_run_named_as_a_model_says_how_to_train_on_from_it(tmp_path):
    from lorakit.models import base_model

    run = tmp_path / "outputs" / "a"
    (run / "adapter").mkdir(parents=True)
    (run / "record.json").write_text("{}")
    for named in (run, run / "adapter"):
        with pytest.raises(
            LorakitError, match="is a run, whose adapter is no model by itself"
        ) as found:
            base_model.path(str(named))
        assert found.value.setting == "model"
        assert f"lorakit export {run} --to merged" in found.value.cure
