"""The documentation: what is made from the code is current, and every link between its files leads to one."""

import importlib.util
import json
import re

import pytest
from helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_settings_page_is_made_from_the_code():
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == module("reference").settings()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_links_of_notebooks_lead_somewhere(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", "".join(cell["source"])):
                assert "://" in link or (path.parent / link).exists(), link


def test_the_readme_is_short_and_names_every_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    for package in (ROOT / "lorakit").iterdir():
        if package.is_dir() and package.name not in ("assets", "__pycache__"):
            assert f"`{package.name}`" in text, package.name
