"""From a folder that holds the quickstart alone to a run that is done, where lorakit is not installed: by four routes."""

import json
import sys
from pathlib import Path

import pytest
from helpers import hosted
from helpers.paths import ROOT

SHORT = {"max_updates": 4, "max_rows": 64, "max_new_tokens": 4}


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a clone is made of the repository")
@pytest.mark.parametrize("route", hosted.ROUTES)
def test_the_quickstart_alone_ends_in_a_run_that_is_done(route, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's words for: without isolation
    python = hosted.overlay(Path(sys.prefix), tmp_path / "environment")
    hosted.kernel(python, tmp_path / "jupyter")
    notebook = hosted.laid(route, "quickstart", tmp_path / "content")
    values = SHORT | {"output_dir": str(tmp_path / "outputs")}
    seen = hosted.execute(notebook, values, tmp_path / "jupyter", network=route != "bundle")
    assert seen.errors == [] and seen.noise == []
    assert seen.first.startswith("lorakit from ")
    record = json.loads((tmp_path / "outputs/quickstart/record.json").read_text())
    assert record["status"] == "done"


def test_what_pip_fetched_is_read_from_its_log(tmp_path):
    wheel = tmp_path / "torchless-1-py3-none-any.whl"
    wheel.write_bytes(b"0" * 500_000)
    log = f"""2026-11-30T13:26:11,1   Downloading bitsandbytes-0.50.2-py3-none-any.whl (60.5 MB)
2026-11-30T13:26:11,1   Downloading colorama-0.4.6-py2.py3-none-any.whl.metadata (17 kB)
2026-11-30T13:26:11,1   Using cached portalocker-4.4.2-py3-none-any.whl (500 bytes)
2026-11-30T13:26:11,1 Processing {wheel}
2026-11-30T13:26:11,1 Processing /content/lorakit-0.1.0-py3-none-any.whl"""
    assert hosted.fetched(log) == pytest.approx(60.5 + 0.017 + 0.0005 + 0.5)


def test_a_replaced_package_that_no_output_mentions_is_found(tmp_path):
    site = tmp_path / "lib/python3.12/site-packages"
    for folder in (tmp_path / "image", site):
        for name in ("Transformers-5.0.0", "huggingface_hub-1.11.0"):
            (folder / f"{name}.dist-info").mkdir(parents=True)
    (tmp_path / "image/numpy-2.0.2.dist-info").mkdir()
    seen = hosted.Seen([], [], "", 0.0, 0.0, "replaced: transformers 5.0.0 → 5.24.0")
    assert seen.unmentioned(tmp_path / "bin/python") == ["huggingface-hub"]
