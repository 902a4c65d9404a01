"""The notebook of a bundle: its parameters name the bundle's copies, and a cell after them finds these at run time."""

from __future__ import annotations

import ast
import copy
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

# The first code cell of every notebook: lorakit from where it is installed, from LORAKIT_SOURCE, a clone or a bundle.
FIRST_CELL = """\
import importlib.util, os, pathlib, runpy, subprocess, sys
LORAKIT_SOURCE = os.environ.get("LORAKIT_SOURCE", "")  # a git URL (git+https://...) or the path of a wheel
if importlib.util.find_spec("lorakit") is None:
    places = [here := pathlib.Path.cwd(), *here.parents, *here.glob("*/"), *pathlib.Path("/kaggle/input").glob("**/")]
    clone, bundle = (next((p for p in places if (p / name).exists()), None)
                     for name in ("lorakit/__init__.py", "install_lorakit.py"))
    if LORAKIT_SOURCE:
        subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", LORAKIT_SOURCE])
    elif clone:
        sys.path.insert(0, str(clone))
    elif bundle:
        print(runpy.run_path(str(bundle / "install_lorakit.py"))["install"]())
    else:
        raise ModuleNotFoundError("lorakit: attach a clone or a bundle, or set LORAKIT_SOURCE to a git URL or a wheel")
import lorakit"""


def rewritten(
    notebook: Mapping[str, Any], values: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Any]:
    """The notebook with these values in its parameters cell, and a cell after it that finds `paths` in the bundle.

    One whose first code cell knows of no bundle gets the first cell that does.
    """
    made = copy.deepcopy(dict(notebook))
    cells = made["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    if not any("install_lorakit.py" in "".join(cell["source"]) for cell in code[:1]):
        cells.insert(0, _cell("code", FIRST_CELL, "lorakit"))
    at = next(
        (i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ())),
        None,
    )
    if at is None:
        return made
    source = "".join(cells[at]["source"])
    cells[at]["source"] = assigned(source, values).splitlines(keepends=True)
    if paths:  # papermill puts its own values between the two
        found = ", ".join(f"unpacked({name})" for name in paths)
        words = f"# The bundle's own copies, wherever it is attached.\n{', '.join(paths)} = {found}"
        cells.insert(
            at + 1,
            _cell(
                "code", f"from lorakit.notebook.bundle.pack import unpacked\n\n{words}", "bundle"
            ),
        )
    return made


def assigned(source: str, values: Mapping[str, Any]) -> str:
    """`name = literal` lines with other literals where the value differs; comments stay."""
    raw = source.encode()
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for statement in reversed(ast.parse(source).body):
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        name, old = getattr(target, "id", ""), statement.value
        if name in values and values[name] != _value(old):
            begin = starts[old.lineno - 1] + old.col_offset  # ast counts bytes
            end = starts[old.end_lineno - 1] + old.end_col_offset
            raw = raw[:begin] + literal(values[name]).encode() + raw[end:]
    return raw.decode()


def literal(value: Any) -> str:
    """As Python writes it, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def notebook_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook for the settings of a RUN.yaml: trains, draws the curve, gives the verdict."""
    given = ", ".join(f"{name}={name}" for name in settings)
    run = textwrap.fill(f"run = lorakit.Run({given})", 110, subsequent_indent="    ")
    lines = "\n".join(f"{name} = {literal(value)}" for name, value in settings.items())
    cells = [
        _cell(
            "markdown",
            f"# {settings['name']}\n\nThe settings of a RUN.yaml, to be run whole.",
            "title",
        ),
        _cell("code", FIRST_CELL, "lorakit"),
        _cell("code", lines, "settings", tags=["parameters"]),
        _cell("code", f"{run}\njob = lorakit.launch(run).watch()", "train"),
        _cell("code", "lorakit.curve(job.folder.path)", "curve"),
        _cell(
            "code",
            "from lorakit import report\n\nprint(report.verdict(job.result())[1])\n"
            'print("status:", job.status, "· report:", job.folder / "report.html")',
            "verdict",
        ),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, source: str, id: str, **more: Any) -> dict[str, Any]:
    cell = {
        "cell_type": kind,
        "id": f"lorakit-{id}",
        "metadata": more,
        "source": source.splitlines(keepends=True),
    }
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
