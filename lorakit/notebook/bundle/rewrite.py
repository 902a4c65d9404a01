"""The notebook of a bundle: its parameters name the bundle's copies, and a cell after them finds these at run time."""

from __future__ import annotations

import ast
import copy
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

# The first code cell of every notebook: lorakit as installed, else from LORAKIT_SOURCE, a clone or a wheel.
# `{address}` is what `make publish-links` writes there.
_FIRST_CELL = """\
# @title Set up lorakit {{ display-mode: "form" }}
LORAKIT_SOURCE = "{address}"  # @param {{type: "string"}}
import glob, importlib.util, os, subprocess, sys
if getattr(importlib.util.find_spec("lorakit"), "origin", None) is None:  # a folder of that name is not the package
    places = [".", "*", "*/*", "..", "../..", "/content/*", *("/kaggle/input" + "/*" * n for n in range(1, 6))]
    clone, wheel = (next((path for place in places for path in sorted(glob.glob(f"{{place}}/{{name}}"))), "")
                    for name in ("lorakit/__init__.py", "lorakit-*.whl"))
    source = os.environ.get("LORAKIT_SOURCE") or (not clone and (wheel or LORAKIT_SOURCE or sys.exit(
        "lorakit: put its wheel or a clone beside this notebook, or write its address (git+https://...) above")))
    if source:
        subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", source])
    else:
        sys.path.insert(0, os.path.abspath(f"{{clone}}/../.."))
import lorakit
lorakit.install_missing()"""


def first_cell(address: str = "") -> str:
    """The set-up cell; `address` is the default of its field, e.g. git+https://HOST/OWNER/REPO@v1."""
    return _FIRST_CELL.format(address=address)


FIRST_CELL = first_cell()


def rewritten(
    notebook: Mapping[str, Any], values: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Any]:
    """The notebook with these values in its parameters cell, and a cell after it that finds `paths` in the bundle.

    One whose first code cell does not set up lorakit gets the cell that does.
    """
    made = copy.deepcopy(dict(notebook))
    cells = made["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    if not any("lorakit.install_missing()" in "".join(cell["source"]) for cell in code[:1]):
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
            end = starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
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
            "from lorakit.results import report\n\nprint(report.verdict(job.result())[1])\n"
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
