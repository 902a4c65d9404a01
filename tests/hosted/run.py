"""Notebooks in an emulated image of Colab or Kaggle: python run.py IMAGE colab|kaggle [NOTEBOOK …]

IMAGE is a folder made by image.py; it stays as it is, lorakit goes into an environment on top of it. Each notebook lies
alone in an empty folder with a wheel of lorakit beside it, and is executed by the image's own kernel. Notebooks of a
model of the hub are rehearsed. Prints a line for each: what the first cell did, seconds, errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


def overlay(image: Path, folder: Path) -> Path:
    """The interpreter of a new environment that sees the packages of the image; nothing is written into that."""
    subprocess.run([image / "bin/python", "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (theirs,) = image.glob("lib/python3*/site-packages")
    (site / "image.pth").write_text(f"{theirs}\n")
    return folder / "bin/python"


def kernel(python: Path, folder: Path) -> None:
    """A kernel of that interpreter under the name `hosted`, found through JUPYTER_PATH."""
    target = folder / "kernels/hosted"
    target.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "hosted", "language": "python"}
    (target / "kernel.json").write_text(json.dumps(about))
    os.environ["JUPYTER_PATH"] = str(folder)


def small(path: Path, python: Path, folder: Path) -> dict:
    """The parameters of a short execution; a model of the hub is replaced by a shrunken one, made by the image."""
    from lorakit.notebook.rehearse import parameters

    known = parameters(path)
    about = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("lorakit", {})
    values = {**about.get("test_parameters", {})}
    if "output_dir" in known:
        values["output_dir"] = str(folder / "outputs")
    if known.get("model", "tiny") != "tiny":
        command = [python, "-c", STAND_IN, path, json.dumps({**known, **values}), folder / "small"]
        said = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
        values |= json.loads(said.stdout.splitlines()[-1])
    return values


def execute(path: Path, values: dict, folder: Path) -> tuple[list[str], float]:
    """(errors, seconds of the first cell)."""
    import papermill

    target = folder / "executed.ipynb"
    with contextlib.suppress(papermill.PapermillExecutionError):  # read from the copy below
        papermill.execute_notebook(
            str(path),
            str(target),
            values,
            kernel_name="hosted",
            cwd=str(folder),
            progress_bar=False,
        )
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    errors = [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
    print("  first cell:", "".join("".join(o.get("text", "")) for o in first["outputs"]).strip())
    return errors, first["metadata"].get("papermill", {}).get("duration") or 0.0


def main(image: str, which: str, *names: str) -> int:
    os.environ.update(PLACE[which])
    failed = 0
    with tempfile.TemporaryDirectory(prefix="lorakit-hosted-") as temporary:
        work = Path(temporary)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
        subprocess.run([*pip, str(work), str(ROOT)], check=True)
        (wheel,) = work.glob("lorakit-*.whl")
        python = overlay(Path(image), work / "environment")
        kernel(python, work / "jupyter")
        for name in names or EIGHT:
            folder = work / name
            folder.mkdir()
            path = Path(shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder))
            shutil.copy(wheel, folder)
            began = time.monotonic()
            try:
                errors, seconds = execute(path, small(path, python, folder), folder)
            except subprocess.CalledProcessError as error:
                errors, seconds = [str(error.stderr).strip().splitlines()[-1]], 0.0
            print(
                f"{which} {name}: {'failed' if errors else 'passed'}, first cell {seconds:.0f} s, "
                f"all {time.monotonic() - began:.0f} s",
                *errors,
                flush=True,
            )
            failed += bool(errors)
    print(f"{len(names or EIGHT) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
