"""`make publish-links`: the repository's address in every notebook, and none of it without a remote."""

import importlib.util
import json
import shutil

import pytest
from helpers.paths import ROOT

spec = importlib.util.spec_from_file_location("publish_links", ROOT / "docs/publish_links.py")
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("gallery"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def text(path):
    return "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:ada/lorakit.git", "https://github.com/ada/lorakit"),
        ("ssh://git@github.com/ada/lorakit.git", "https://github.com/ada/lorakit"),
        ("https://token@github.com/ada/lorakit.git", "https://github.com/ada/lorakit"),
        ("https://git.example.org/a/b/lorakit/", "https://git.example.org/a/b/lorakit"),
        ("/srv/lorakit.git", "/srv/lorakit.git"),
    ],
)
def test_the_address_of_a_remote(remote, address):
    assert links.web(remote) == address


def test_every_notebook_gets_its_buttons_and_its_source(copy):
    notebooks = sorted((copy / "notebooks").glob("*.ipynb"))
    changed = links.stamp(copy, "git@github.com:ada/lorakit.git", "v1.2")
    assert changed == [*notebooks, copy / "README.md"]
    for path in notebooks:
        shown = text(path)
        at = f"ada/lorakit/blob/v1.2/notebooks/{path.name}"
        assert f"https://colab.research.google.com/github/{at}" in shown
        assert f"https://kaggle.com/kernels/welcome?src=https://github.com/{at}" in shown
        assert 'LORAKIT_SOURCE = "git+https://github.com/ada/lorakit@v1.2"  # @param' in shown
        assert "](../docs/" not in shown and "](quickstart.ipynb)" not in shown
    assert "blob/v1.2/notebooks/quickstart.ipynb" in (copy / "README.md").read_text()
    assert links.stamp(copy, "git@github.com:ada/lorakit.git", "v1.2") == []


def test_elsewhere_a_source_and_no_buttons_and_without_a_remote_nothing(copy, tmp_path):
    path = copy / "notebooks/quickstart.ipynb"
    links.stamp(copy, str(tmp_path), "main")
    assert f'LORAKIT_SOURCE = "git+file://{tmp_path}@main"' in text(path)
    assert "colab.research" not in text(path)
    links.stamp(copy, "", "main")
    assert 'LORAKIT_SOURCE = ""' in text(path) and "git+" not in text(path).split("@param")[0]
    assert path.read_bytes() == (ROOT / "notebooks/quickstart.ipynb").read_bytes()
