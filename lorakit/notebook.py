"""Executes a notebook through papermill, the executed copy beside the run's other files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from lorakit.errors import LorakitError, did_you_mean


def execute(notebook: str | os.PathLike, parameters: dict[str, Any], output_dir: str | os.PathLike = "outputs") -> Path:
    """`output_dir/<notebook's name>/<notebook's name>.ipynb`. Values given as text are read as YAML.

    Raises `LorakitError` naming the cell when one fails, or a parameter that the notebook does not have.
    """
    try:
        import papermill
    except ImportError:
        raise LorakitError("running notebooks needs papermill: pip install 'lorakit[notebooks]'") from None
    path = Path(notebook)
    if not path.is_file():
        raise LorakitError(f"{path}: no such notebook")
    known = papermill.inspect_notebook(str(path))
    for name in parameters:
        if name not in known:
            raise LorakitError(f"{path}: has no parameter '{name}'{did_you_mean(name, known)} "
                               f"It has {', '.join(known)}.")
    values = {k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in parameters.items()}
    # YAML reads 1e-4 as text; a notebook wants the number.
    values = {k: _number(v) if isinstance(v, str) else v for k, v in values.items()}
    target = Path(output_dir) / path.stem / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(str(path), str(target), parameters=values, kernel_name="python3",
                                   log_output=False, progress_bar=True)
    except papermill.PapermillExecutionError as error:
        raise LorakitError(f"{path}: cell {error.cell_index} failed: {error.ename}: {error.evalue}\n"
                           f"See the executed copy: {target}") from None
    return target


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
