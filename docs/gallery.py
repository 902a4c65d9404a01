"""Executes notebooks and publishes the copies: python docs/gallery.py [NAME …]   (all without a name; `make gallery`)

Each runs at the small parameters of its metadata, with the pretrained model of `LORAKIT_TEST_MODELS` that its metadata
name (`lorakit.gallery_model`), else rehearsed on a shrunken one where it names a model of the hub. The copy under
docs/gallery/ holds the SHA-256 of the code cells that it shows; tests/notebook/test_gallery.py fails when they differ.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS, GALLERY = ROOT / "notebooks", ROOT / "docs" / "gallery"
MOST_BYTES = 1_000_000
WIDTH = 1000  # pixels of a picture at most
HIDDEN = ("application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json")


def digest(notebook: dict[str, Any]) -> str:
    """SHA-256 of the code cells without the repository's address and the parameters of the execution."""
    cells = [
        re.sub(r'^LORAKIT_SOURCE = ".*?"', "", "".join(cell["source"]), flags=re.M)
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and "injected-parameters" not in cell["metadata"].get("tags", ())
    ]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()


def execute(path: Path, folder: Path) -> Path:
    """The executed copy, in `folder`."""
    from lorakit.notebook import execute as papermill
    from lorakit.notebook.rehearse import parameters, rehearse

    about = read(path)["metadata"].get("lorakit", {})
    known = parameters(path)
    values = {**about.get("test_parameters", {}), **about.get("gallery_parameters", {})}
    if "output_dir" in known:
        values["output_dir"] = str(folder / "outputs")
    models = Path(os.environ.get("LORAKIT_TEST_MODELS", "no-such-folder"))
    real = models / about.get("gallery_model", "none")
    if real.is_dir():
        return papermill.execute(path, {**values, "model": str(real)}, folder)
    if known.get("model", "tiny") == "tiny":
        return papermill.execute(path, values, folder)
    return rehearse(path, values)


def published(executed: dict[str, Any], source: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The copy without paths of this machine and without widgets, its pictures no wider than `WIDTH`."""
    text = json.dumps(executed, ensure_ascii=False)
    site = str(Path(json.__file__).parents[1])
    models = os.environ.get("LORAKIT_TEST_MODELS", "no-such-folder").rstrip("/")
    places = ((str(folder), ""), (sys.prefix, ".venv"), (site, "lib"), (str(ROOT), "."))
    for place, shown in (*places, (models, "models"), (str(Path.home()), "~")):
        text = text.replace(f"{place}/", f"{shown}/".lstrip("/")).replace(place, shown or ".")
    made = json.loads(text)
    for cell in made["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in HIDDEN:
                data.pop(kind, None)
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if o.get("data", True)]
    about = {"source_sha256": digest(source)}
    kept = {k: v for k, v in source["metadata"].items() if k in ("kernelspec", "language_info")}
    return {**made, "metadata": {**kept, "lorakit": about}}


def smaller(picture: str, width: int = WIDTH) -> str:
    """A PNG (base64) of at most so many pixels across, in 256 colours where that saves a third."""
    from PIL import Image

    raw = base64.b64decode(picture)
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    if image.width > width:
        image = image.resize((width, image.height * width // image.width), Image.Resampling.LANCZOS)
    image.quantize(256).save(out := io.BytesIO(), "PNG", optimize=True)
    best = out.getvalue() if len(out.getvalue()) < 2 / 3 * len(raw) else raw
    return base64.b64encode(best).decode()


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def title(notebook: dict[str, Any]) -> tuple[str, str]:
    """The heading, and the first sentence below it."""
    text = "".join(notebook["cells"][0]["source"])
    heading, _, rest = text.partition("\n")
    words = re.sub(r"<!--.*?-->|\[!\[.*?\]\(.*?\)\]\(.*?\)", "", rest, flags=re.S).strip()
    return heading.lstrip("# "), re.split(r"(?<=[.?!])\s", " ".join(words.split()))[0]


def index() -> None:
    """docs/gallery/index.md: a card for each copy, with its first picture."""
    lines = ["# Gallery", "", "Executed notebooks. Open one to read it with its output.", ""]
    lines += ["| | notebook |", "|---|---|"]
    for path in sorted(GALLERY.glob("*.ipynb")):
        heading, words = title(read(path))
        thumbnail = GALLERY / "thumbs" / f"{path.stem}.png"
        picture = f"![](thumbs/{thumbnail.name})" if thumbnail.exists() else ""
        lines.append(f"| {picture} | **[{heading}]({path.name})**<br>{words} |")
    (GALLERY / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def thumbnail(notebook: dict[str, Any], target: Path) -> None:
    """The largest picture of the copy, 320 pixels across."""
    pictures = [
        output["data"]["image/png"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    if pictures:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(base64.b64decode(smaller(max(pictures, key=len), 320)))


def publish(path: Path) -> Path:
    """Executes one notebook and writes its copy. Raises `ValueError` when the copy is too large."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="lorakit-gallery-") as folder:
        made = published(read(execute(path, Path(folder))), read(path), Path(folder))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    timed(path, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"{path.name}: the executed copy has {len(text.encode()):,} bytes")
    GALLERY.mkdir(parents=True, exist_ok=True)
    target = GALLERY / path.name
    target.write_text(text, encoding="utf-8")
    thumbnail(made, GALLERY / "thumbs" / f"{path.stem}.png")
    return target


def timed(path: Path, seconds: float) -> None:
    """Writes the CPU time of an execution, the kernel's and its children's, into the notebook's opening table."""
    notebook = read(path)
    text = "".join(notebook["cells"][0]["source"])
    about = notebook["metadata"].get("lorakit", {})
    test, given = about.get("test_parameters", {}), about.get("gallery_parameters", {})
    how = (
        "shortened, "
        if any(given.get(name, value) == value for name, value in test.items())
        else ""
    )
    cell = f"{how}{max(1, round(seconds / 60))} min of CPU time"
    text = re.sub(r"(\| whole notebook \|)[^|]*\|", lambda m: f"{m[1]} {cell} |", text)
    notebook["cells"][0]["source"] = text.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(names: list[str]) -> int:
    failed = 0
    for name in names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        try:
            print(publish(NOTEBOOKS / f"{name}.ipynb"), flush=True)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
    index()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
