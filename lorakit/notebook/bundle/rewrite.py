"""The notebook of a bundle: its parameters name the bundle's copies, and a cell after them finds these at run time."""

from __future__ import annotations

import ast
import copy
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

# The first code cell of every notebook: lorakit as installed, else from the environment's LORAKIT_SOURCE, from a bundle
# whose manifest lists this very wheel, from a wheel or a clone of the notebook's own folder, or from `{address}`: what
# `make publish-links` writes there, and in a packed notebook `bundle:` with the SHA-256 of its own bundle's wheels.
_FIRST_CELL = """\
# @title Set up lorakit {{ display-mode: "form" }}
LORAKIT_SOURCE = "{address}"  # @param {{type: "string"}}
import glob, hashlib, importlib.util, json, os, pathlib, subprocess, sys
def packed(manifest):  # its wheel of lorakit, where it is the one listed, and the bundle the one that is meant
    files = json.loads(manifest.read_text())["files"].items()
    listed = {{name: file["sha256"] for name, file in files if name.startswith("wheels/")}}
    pin = "bundle:" + hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    meant = pin == LORAKIT_SOURCE or not LORAKIT_SOURCE.startswith("bundle:")
    wheels = meant and sorted(manifest.parent.glob("wheels/lorakit-*.whl"))
    return [w for w in wheels or () if hashlib.sha256(w.read_bytes()).hexdigest() == listed.get(f"wheels/{{w.name}}")]
if getattr(importlib.util.find_spec("lorakit"), "origin", None) is None:  # a folder of that name is not the package
    places = [".", "*", "..", "/content/*", *("/kaggle/input" + "/*" * n for n in range(1, 6))]
    bundles = [b for p in places for b in sorted(glob.glob(f"{{p}}/bundle.json"))]
    clones = [f"{{p}}/lorakit/__init__.py" for p in (".", "lorakit", "..", "../..", "/content/lorakit")]
    found = glob.glob("lorakit-*.whl") + [w for b in bundles for w in packed(pathlib.Path(b))]
    found += [*filter(os.path.isfile, clones), LORAKIT_SOURCE]
    source = str(os.environ.get("LORAKIT_SOURCE") or found[0])
    if source.startswith("bundle:") or not source:
        sys.exit("lorakit: put its wheel or a clone beside this notebook, attach its bundle as it was packed, "
                 "or write its address (git+https://...) above")
    print("lorakit from", source)
    if source.endswith("__init__.py"):
        sys.path.insert(0, os.path.abspath(f"{{source}}/../.."))
    else:
        os.environ["LORAKIT_BUNDLE"] = os.path.abspath(f"{{source}}/../..") if "/wheels/" in source else ""
        subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", source])
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
