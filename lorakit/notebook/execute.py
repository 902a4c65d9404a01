"""Executes a notebook through papermill, the executed copy beside the run's other files."""

from __future__ import annotations

import ast
import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lorakit.common import strict_yaml
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
    there = known(path)
    refuse(path, parameters, there)
    import papermill
    from nbclient.exceptions import DeadKernelError

    values = {
        name: value_of(name, v, there[name]["default"]) if isinstance(v, str) else v
        for name, v in parameters.items()
    }
    target = Path(output_dir) / path.stem / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _kernel_ignores_working_folder() as arguments:
            papermill.execute_notebook(
                str(path),
                str(target),
                parameters=values,
                kernel_name="python3",
                extra_arguments=arguments,
                log_output=False,
                progress_bar=True,
            )
    except DeadKernelError:
        raise LorakitError(
            f"the kernel was killed in {running_cell(target)}; most likely memory ran out",
            where=path,
            cure=f"take a smaller model, or lower micro_batch_size and max_length; the executed copy is {target}",
        ) from None
    except papermill.PapermillExecutionError as error:
        raise LorakitError(
            f"{path}: cell {error.cell_index} failed: {error.ename}: {error.evalue}\n"
            f"See the executed copy: {target}"
        ) from None
    return target


def running_cell(executed: Path) -> str:
    """`cell 3 (lorakit.launch(run))`: the last cell of an executed copy that was started."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return "an unknown cell"
    started = [
        (number, "".join(cell["source"]).strip().splitlines())
        for number, cell in enumerate(cells)
        if cell.get("metadata", {}).get("papermill", {}).get("start_time")
    ]
    if not started:
        return "its first cell"
    number, lines = started[-1]
    return f"cell {number} ({lines[0][:60] if lines else 'empty'})"


@contextlib.contextmanager
def _kernel_ignores_working_folder() -> Iterator[list[str]]:
    """Arguments for a kernel started within this block, which imports nothing from the working folder: a `json.py`
    that lies beside the data must not run. The interpreter and IPython put that folder into sys.path each by itself."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield [
            "--IPKernelApp.ignore_cwd=True",
            "--IPKernelApp.log_level=50",
        ]  # papermill reports what fails
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def value_of(name: str, text: str, default: str) -> Any:
    """A parameter given as text, by the type of the notebook's own value (`default`, Python source).

    Where that is text, the text stays as it stands; where it is a number or a truth value, it must be one too; else
    it is read as YAML. Raises `LorakitError` naming the parameter.
    """
    try:
        own = ast.literal_eval(default)
    except (ValueError, SyntaxError):
        own = None
    if isinstance(own, str) and own != "auto":
        return text
    try:
        value = strict_yaml.load(text)
    except yaml.YAMLError:
        raise LorakitError(f"-p {name} {text}: the value cannot be read as YAML") from None
    truth = isinstance(value, bool)
    number = isinstance(value, (int, float)) and not truth
    expected = (
        "true or false"
        if isinstance(own, bool)
        else "a number"
        if isinstance(own, (int, float))
        else ""
    )
    fits = truth if isinstance(own, bool) else number or value in (None, "auto")
    if expected and not fits:
        raise LorakitError(
            f"-p {name} {text}: expected {expected}, as the notebook has {own!r}",
            setting=name,
            value=text,
        )
    return value
