"""The gallery: every executed copy shows the code that its notebook has now, is small, and has no error in it."""

import importlib.util
import json

import pytest
from helpers.paths import ROOT

spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs/gallery.py")
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)
COPIES = sorted((ROOT / "docs/gallery").glob("*.ipynb"))


@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_a_copy_is_current_and_small(path):
    """Else: python docs/gallery.py NAME"""
    copy, source = gallery.read(path), gallery.read(ROOT / "notebooks" / path.name)
    assert copy["metadata"]["lorakit"]["source_sha256"] == gallery.digest(source)
    assert path.stat().st_size <= gallery.MOST_BYTES
    outputs = [out for cell in copy["cells"] for out in cell.get("outputs", [])]
    noise = [out for out in outputs if out["output_type"] == "error" or out.get("name") == "stderr"]
    assert outputs and not noise
    assert path.name in (ROOT / "docs/gallery/index.md").read_text(encoding="utf-8")


def test_the_digest_is_of_the_code_alone():
    def notebook(*cells):
        return {
            "cells": [{"cell_type": k, "metadata": {"tags": t}, "source": s} for k, t, s in cells]
        }

    code = ("code", [], ["a = 1\n", "b"])
    one = gallery.digest(notebook(code))
    injected = ("code", ["injected-parameters"], ["a = 2"])
    assert gallery.digest(notebook(("markdown", [], ["x"]), code, injected)) == one
    assert gallery.digest(notebook(("code", [], ["a = 2\n", "b"]))) != one
    address = ("code", [], ['LORAKIT_SOURCE = "git+https://x"  # @param'])
    empty = ("code", [], ['LORAKIT_SOURCE = ""  # @param'])
    assert gallery.digest(notebook(address)) == gallery.digest(notebook(empty))


def test_paths_and_widgets_do_not_reach_the_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_TEST_MODELS", "/some/where")
    text = f"See {tmp_path}/outputs/run and {ROOT}/data, /some/where/whisper"
    view = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": ["Panel()"]}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": [text]},
        {"output_type": "display_data", "data": view, "metadata": {}},
    ]
    cell = {"cell_type": "code", "metadata": {"papermill": {}}, "source": ["x"], "outputs": outputs}
    made = gallery.published({"cells": [cell]}, {"cells": [cell], "metadata": {}}, tmp_path)
    first, second = made["cells"][0]["outputs"]
    assert first["text"] == ["See outputs/run and ./data, models/whisper"]
    assert second["data"] == {"text/plain": ["Panel()"]}
    assert json.dumps(made).count(str(tmp_path)) == 0
