"""The documentation: what is made from the code is current, and every link between its files leads to one."""

import ast
import importlib.util
import json
import re
from functools import lru_cache

import pytest
from helpers.paths import ROOT

from lorakit.cli import COMMANDS

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
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


def text_of(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def test_pages_and_notebooks_name_commands_options_and_targets_that_exist():
    options = {c.name: {n for a in c.arguments for n in a.names} for c in COMMANDS}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.M))
    lost = []
    for page in [*PAGES, *NOTEBOOKS]:
        text = text_of(page)
        for name, rest in re.findall(r"(?:`|^    )lorakit ([a-z]+)([^\n`]*)", text, re.M):
            used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - {"--help"}
            lost += [f"{page.name}: {name} {n}" for n in used - options.get(name, set())]
            lost += [] if name in options else [f"{page.name}: lorakit {name}"]
        used = set(re.findall(r"`make ([a-z0-9-]+)", text))
        lost += [f"{page.name}: make {n}" for n in used - targets]
    assert not lost


def test_programs_import_what_exists():
    programs = [p for d in ("bench", "docs", "data") for p in (ROOT / d).glob("*.py")]
    lost = []
    for path in [*programs, *NOTEBOOKS]:  # in text that is run as a program, too
        text = text_of(path)
        lost += [
            (path.name, name)
            for name in re.findall(r"(?:from|import) (lorakit(?:\.\w+)+)", text)
            if not source_of(name)
        ]
        imported = r"from (lorakit(?:\.\w+)+) import (?:\(([\w\s,]+)\)|([\w ,]+))"
        for name, *names in re.findall(imported, text):
            for each in re.findall(r"(\w+)(?: as \w+)?", "".join(names)):
                if each not in bound(source_of(name)) and not source_of(f"{name}.{each}"):
                    lost.append((path.name, f"{name}.{each}"))
    assert not lost


def source_of(name):
    """The file of a module; None where there is no such module."""
    place = ROOT / name.replace(".", "/")
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)


@lru_cache
def bound(path):
    """Names that a module binds."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(n.asname or n.name).partition(".")[0] for n in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
