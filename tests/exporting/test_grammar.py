"""The grammar beside a GGUF: llama.cpp reads it, and its answers then have the form that was taught."""

import shutil

import pytest

from lorakit.exporting.round_trip import export
from lorakit.exporting.targets.gguf import GRAMMAR, server
from lorakit.results import evidence
from lorakit.results.evidence import Evidence
from lorakit.results.form import Form, Slot
from lorakit.runs.folder import RunFolder

pytest.importorskip("xllamacpp")
FORM = Form(
    ['{"desk": "', Slot("choice", ["first aid", "h\u00e9lico"]), '", "n": ', Slot("number"), ', "p": "',
     Slot("text", (), '"', 12), '"}'],
)  # fmt: skip


def test_llama_cpp_holds_answers_to_the_form(mistral, tmp_path, here):
    folder = RunFolder(shutil.copytree(mistral, tmp_path / "run"))
    known = {"figures": {"form": FORM.plain()}, "weights": evidence.weights(folder)}
    evidence.keep(folder, Evidence("form", "", True, **known))
    out = export(folder.path, "gguf", tmp_path / "out", type="f32", proof_seconds=2)
    running = server(out, 512)

    def said(**more):
        asked = {"prompt": "Where?", "max_tokens": 96, "temperature": 0.0, **more}
        return running.handle_completions(asked)["choices"][0]["text"]

    free, held = said(), said(grammar=(out / GRAMMAR).read_text())
    assert FORM.fits(held) and not FORM.fits(free), held
