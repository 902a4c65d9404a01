"""Notebooks in an emulated image of Colab or Kaggle: python run.py IMAGE colab|kaggle [--route ROUTE] [NOTEBOOK …]

IMAGE is a folder made by image.py; it stays as it is, lorakit goes into an environment on top of it. Each notebook lies
alone in an empty folder, lorakit within its reach by the route (a wheel beside it unless told), and is executed by the
image's own kernel. A bundle is executed without network. Notebooks of a model of the hub are rehearsed. Prints a line
for each: seconds and megabytes of the first cell, errors, output on stderr, packages replaced that no output mentions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import hosted  # noqa: E402

EIGHT = (
    "quickstart evaluate check_data studio classify_text phi3_alpaca_qlora gemma3n_maize_vision export_and_run"
).split()
PLACE = {"colab": {"COLAB_RELEASE_TAG": "emulated"}, "kaggle": {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}}
STAND_IN = """
import json, sys
from pathlib import Path
from lorakit.notebook.rehearse import overridden
print(json.dumps(overridden(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))[0]))
"""


def small(name: str, python: Path, folder: Path) -> dict:
    """The parameters of a short execution; a model of the hub is replaced by a shrunken one, made by the image."""
    from lorakit.notebook.rehearse import ROWS, UPDATES, parameters

    path = ROOT / "notebooks" / f"{name}.ipynb"
    known = parameters(path)
    about = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("lorakit", {})
    short = {"max_updates": UPDATES, "max_rows": ROWS, "max_new_tokens": 4}
    values = {**{k: v for k, v in short.items() if k in known}, **about.get("test_parameters", {})}
    if "output_dir" in known:
        values["output_dir"] = str(folder / "outputs")
    if known.get("model", "tiny") != "tiny":
        command = [python, "-c", STAND_IN, path, json.dumps({**known, **values}), folder / "small"]
        said = subprocess.run(
            [*map(str, command)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        values |= json.loads(said.stdout.splitlines()[-1])
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute notebooks in an emulated image.")
    parser.add_argument("image", type=Path)
    parser.add_argument("which", choices=PLACE)
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK")
    parser.add_argument("--route", choices=hosted.ROUTES, default="wheel")
    parser.add_argument("--keep", action="store_true", help="leave the executed copies")
    options = parser.parse_intermixed_args()
    os.environ.update(PLACE[options.which])
    names, failed = options.names or EIGHT, 0
    home = Path(tempfile.mkdtemp(prefix="lorakit-hosted-"))
    try:
        python = hosted.overlay(options.image, home / "environment")
        hosted.kernel(python, home / "jupyter")
        wheel = hosted.wheel(home)
        for name in names:
            failed += not passed(options, name, python, wheel, home)
    finally:
        if options.keep:
            print(f"executed copies: {home}/*/executed.ipynb")
        else:
            shutil.rmtree(home)
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


def passed(options: argparse.Namespace, name: str, python: Path, wheel: Path, home: Path) -> bool:
    """Executes one notebook and says how it went."""
    began = time.monotonic()
    packed = options.route == "bundle"
    try:
        values = small(name, python, home / f"{name}-parameters")
        copies = {k: v for k, v in values.items() if k in ("model", "data")} if packed else {}
        path = hosted.laid(options.route, name, home / name, wheel, options.which, **copies)
        given = {k: v for k, v in values.items() if k not in copies}
        seen = hosted.execute(path, given, home / "jupyter", network=not packed)
    except subprocess.CalledProcessError as error:
        print(f"{options.which} {name}: failed:", str(error.stderr).strip()[-2000:], flush=True)
        return False
    faults = [*seen.errors, *(f"on stderr: {line}" for line in seen.noise)]
    faults += [f"replaced, and not mentioned: {each}" for each in seen.unmentioned(python)]
    print("  first cell:", seen.first.replace("\n", "\n    "))
    print(
        f"{options.which} {name}: {'failed' if faults else 'passed'}, first cell {seen.seconds:.0f} s, "
        f"{seen.megabytes:.0f} MB, all {time.monotonic() - began:.0f} s",
        *faults,
        sep="\n    ",
        flush=True,
    )
    return not faults


if __name__ == "__main__":
    sys.exit(main())
