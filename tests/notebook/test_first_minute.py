"""From a folder that holds the quickstart alone to a run that is done, where lorakit is not installed: by four routes."""

import ast
import functools
import json
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from helpers import hosted
from helpers.paths import ROOT

from lorakit.common import registry
from lorakit.machine import packages
from lorakit.notebook.bundle.pack import HOSTS, asked_for, image_of

SHORT = {"max_updates": 4, "max_rows": 64, "max_new_tokens": 4}


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a clone is made of the repository")
@pytest.mark.parametrize("route", hosted.ROUTES)
def test_the_quickstart_alone_ends_in_a_run_that_is_done(route, tmp_path):
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


def imports(tree, everywhere):
    """Dotted names that are imported when the module is, or by any line of it."""
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def foreign(names, seen):
    """Top-level names of other packages that importing these brings along."""
    for name in names:
        top, *rest = name.split(".")
        if top != "lorakit":
            yield top
            continue
        for depth in range(len(rest) + 1):
            path = ROOT.joinpath("lorakit", *rest[:depth])
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if file.is_file() and file not in seen:
                seen.add(file)
                yield from foreign(imports(ast.parse(file.read_text("utf-8")), False), seen)


def of_registries(code):
    """The packages of each metric that the cells name."""
    words = {
        node.value
        for text in code
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
    }
    for name in {*registry.names("metrics")} & words:
        yield from getattr(registry.load("metrics", name), "PACKAGES", ())


distributions_here = functools.cache(metadata.packages_distributions)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_installs_what_it_imports_and_the_image_lacks(path, host):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    wanted = {name for text in code for name in imports(ast.parse(text), True)}
    there = {packages.normal(name) for name in image_of(host)[2]}
    there |= {packages.normal(r.name) for r in packages.declared()}
    there |= {packages.normal(r.name) for r in packages.specified(asked_for_names(path))}
    needed = {packages.normal(name) for name in of_registries(code)}
    assert needed <= there
    distributions = distributions_here()
    tops = set(foreign(wanted, set())) - sys.stdlib_module_names
    lacking = {
        top: distributions.get(top, [top])
        for top in tops
        if not there & {packages.normal(name) for name in distributions.get(top, [top])}
    }
    assert lacking == {}


def asked_for_names(path):
    return [packages.Requirement(text).name for text in asked_for(path)]


def test_colab_is_asked_to_show_widgets_of_other_packages(monkeypatch):
    page = pytest.importorskip("lorakit.notebook.studio.page")
    asked = []
    output = types.SimpleNamespace(enable_custom_widget_manager=lambda: asked.append(True))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(output=output))
    page.enable_on_colab()
    assert asked == []
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    page.enable_on_colab()
    assert asked == [True]
