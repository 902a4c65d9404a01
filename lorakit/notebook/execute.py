"""Executes a notebook through papermill, the executed copy beside the run's other files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.machine.packages import require


def known(notebook: str | os.PathLike) -> dict[str, Any]:
    """What papermill finds in the parameters cell, by name. Raises `LorakitError` for what is no notebook."""
    require("papermill", "ipykernel", purpose="running a notebook")
    import papermill

    path = Path(notebook)
    if not path.is_file():
        raise LorakitError(f"{path}: no such notebook")
    try:
        return papermill.inspect_notebook(str(path))
    except Exception as error:  # nbformat and papermill raise what they please on a damaged file
        raise LorakitError(
            f"{path}: cannot be read as a notebook: {str(error).splitlines()[0]}"
        ) from None


def refuse(path: str | os.PathLike, parameters: Iterable[str], there: Iterable[str]) -> None:
    """Raises `LorakitError` naming the first parameter that the notebook does not have."""
    for name in parameters:
        if name not in there:
            raise LorakitError(
                f"{path}: has no parameter '{name}'{did_you_mean(name, there)} "
                f"It has {', '.join(there)}."
            )


def execute(
    notebook: str | os.PathLike,
    parameters: dict[str, Any],
    output_dir: str | os.PathLike = "outputs",
) -> Path:
    """`output_dir/<notebook's name>/<notebook's name>.ipynb`. Values given as text are read as YAML.

    Raises `LorakitError` naming the cell when one fails, or a parameter that the notebook does not have.
    """
    path = Path(notebook)
    refuse(path, parameters, known(path))
    import papermill

    values = {
        name: value_of(name, v) if isinstance(v, str) else v for name, v in parameters.items()
    }
    target = Path(output_dir) / path.stem / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(path),
            str(target),
            parameters=values,
            kernel_name="python3",
            log_output=False,
            progress_bar=True,
        )
    except papermill.PapermillExecutionError as error:
        raise LorakitError(
            f"{path}: cell {error.cell_index} failed: {error.ename}: {error.evalue}\n"
            f"See the executed copy: {target}"
        ) from None
    return target


def value_of(name: str, text: str) -> Any:
    """YAML's reading of a parameter; 1e-4, which YAML takes for text, as the number a notebook wants."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise LorakitError(f"-p {name} {text}: the value cannot be read as YAML") from None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
