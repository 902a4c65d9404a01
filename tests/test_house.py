"""The rules of the house: who may import whom, what a file of a folder must offer, how notebooks are made."""

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Rejected
from lorakit.models import served
from lorakit.models.spec import Spec
from lorakit.notebook.bundle.rewrite import FIRST_CELL
from lorakit.run import Run

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lorakit"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# A module imports, when it is loaded, only what stands before it. A folder is one entry.
ORDER = """common machine run runs data models tasks engines planning results training exporting
    notebook commands cli""".split()


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path):
    return str(path.relative_to(PACKAGE))


def place(path):
    """lorakit/tasks/chat.py -> tasks"""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def outside_functions(node):
    """The statements that run when a module is loaded."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from outside_functions(child)


def imported(nodes):
    """Modules and folders of lorakit that these nodes import, as dotted names without `lorakit.`"""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module else []
        else:
            continue
        yield from (n.removeprefix("lorakit.") for n in names if n.startswith("lorakit."))


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted({place(p) for p in FILES})


@pytest.mark.parametrize("path", FILES, ids=named)
def test_modules_import_only_what_stands_above_them(path):
    mine = ORDER.index(place(path))
    for name in imported(outside_functions(tree(path))):
        other = name.split(".")[0]
        assert ORDER.index(other) < mine or other == place(path), f"{place(path)} imports {name}"


# Conversion between formats stands with the engine whose format it is.
CONVERTS = (
    "commands/sharing.py",
    "exporting/gguf/files.py",
    "exporting/gguf/tensors.py",
    "exporting/targets/mlx.py",
)


# The exceptions state which packages are installed.
@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem not in ("hardware", "doctor")], ids=named
)
def test_an_engine_is_named_only_in_its_own_file(path):
    engines = {*registry.names("engines"), "torch", "mlx", "unsloth"}
    if place(path) == "engines":
        engines -= {path.relative_to(PACKAGE).with_suffix("").parts[1]}
    found = tree(path)
    words = {
        n.value for n in ast.walk(found) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    assert not words & engines
    # one engine may build on another
    if place(path) != "engines" and named(path) not in CONVERTS:
        general = ("engines.protocol", "engines.quantization")
        others = [n for n in imported(ast.walk(found)) if n.startswith("engines.")]
        assert not [n for n in others if not n.startswith(general)]


def test_the_loop_fits_a_screen_and_knows_nothing_else():
    found = tree(PACKAGE / "training/loop.py")
    (loop,) = (n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert loop.end_lineno - loop.lineno < 60
    modules = {a.name for n in ast.walk(found) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(found) if isinstance(n, ast.ImportFrom)}
    assert {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names} == {
        "lorakit.tasks.batches",
        "lorakit.common.errors",
    }
    names = {n.id for n in ast.walk(found) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(found) if isinstance(n, ast.Attribute)}
    names |= {n.arg for n in ast.walk(found) if isinstance(n, (ast.arg, ast.keyword))}
    forbidden = re.compile(
        r"cuda|mps|cpu|device|dtype|float\d|half|autocast|scaler|tqdm|progress|print|plot"
    )
    assert not {n for n in names if n and forbidden.search(n)}


def test_importing_lorakit_is_quick_and_loads_no_heavy_package():
    code = (
        "import sys, time; start = time.perf_counter(); import lorakit; "
        "seconds = time.perf_counter() - start; import lorakit.cli; lorakit.Run(data='-'); "
        "print(seconds, *sys.modules)"
    )
    seconds, modules = [], set()
    for _ in range(2):  # the better of two: the machine may be busy
        words = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(float(words[0]))
        modules |= set(words[1:])
    assert min(seconds) <= 0.3
    assert not modules & {
        "torch",
        "transformers",
        "datasets",
        "peft",
        "matplotlib",
        "pandas",
        "scipy",
    }
    assert "lorakit.run" in modules


def test_public_names_can_be_had():
    import lorakit

    for name in lorakit.__all__:
        assert not inspect.ismodule(getattr(lorakit, name)), name
    assert set(lorakit.__all__) <= set(dir(lorakit))
    with pytest.raises(AttributeError, match=r"lorakit has no 'finetuning'; it has .*finetune"):
        _ = lorakit.finetuning


# The folder is the registry: a file of each folder keeps the folder's contract


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_an_unknown_name_lists_what_is_there():
    words = r"there is no task 'chatt'; did you mean 'chat'\? Use one of .*chat, .*text"
    with pytest.raises(LorakitError, match=words):
        registry.load("tasks", "chatt")


@pytest.mark.parametrize("path", [p for p in FILES if p.read_bytes()], ids=named)
def test_every_module_says_what_it_is(path):
    assert (ast.get_docstring(tree(path)) or "")[:1].strip()


@pytest.mark.parametrize("name", registry.names("formats"))
def test_formats(name, tmp_path):
    module = registry.load("formats", name)
    assert all(re.fullmatch(r"\.[a-z0-9.]+", s) for s in module.SUFFIXES)
    first, *options = inspect.signature(module.read).parameters.values()
    assert first.name == "path" and all(o.kind is o.KEYWORD_ONLY for o in options)
    others = [s for n, m in registry.modules("formats").items() if n != name for s in m.SUFFIXES]
    assert not set(module.SUFFIXES) & set(others)
    for content in (b"", b"\n", b"\x00\xff\xfe{", b"\x89PNG\r\n\x1a\n" + bytes(range(256))):
        for ending in module.SUFFIXES[:1]:
            path = tmp_path / f"f{ending}"
            path.write_bytes(content)
            try:
                found = list(module.read(path))
            except LorakitError as error:
                assert str(path) in str(error)
            else:  # pictures and sounds are looked into when their schema is known
                assert hasattr(module, "MEDIUM") or all(
                    isinstance(row, Rejected) and row.row >= 1 and row.reason for row in found
                )


@pytest.mark.parametrize("name", registry.names("checks"))
def test_checks(name):
    module = registry.load("checks", name)
    assert module.TITLE and isinstance(module.SAMPLED, bool)
    assert parameters(module.Check) == ["encode", "max_length"]
    assert parameters(module.Check.see) == ["self", "example", "set"]
    nothing = module.Check(None, 100)
    assert json.loads(json.dumps(nothing.facts())) is not None and isinstance(
        nothing.findings(), list
    )


@pytest.mark.parametrize("name", registry.names("schemas"))
def test_schemas(name):
    module = registry.load("schemas", name)
    assert module.GIVES in {t.GIVES for t in registry.modules("tasks").values()}
    assert module.REQUIRED and all(isinstance(names, tuple) and names for names in module.REQUIRED)
    assert parameters(module.convert) == ["fields"]
    # Its docstring shows a real row.
    (shown,) = [line for line in module.__doc__.splitlines() if line.startswith("{")]
    row = json.loads(shown)
    assert all(set(names) & set(row) for names in module.REQUIRED)
    assert {module.GIVES, "media"} & {*module.convert(row)} and isinstance(module.OPTIONAL, tuple)
    for names in module.REQUIRED:
        for nothing in (None, {}):
            with pytest.raises(BadRow):
                module.convert(row | {n: nothing for n in names})


@pytest.mark.parametrize("name", registry.names("tasks"))
def test_tasks(name):
    module = registry.load("tasks", name)
    assert module.GIVES in {s.GIVES for s in registry.modules("schemas").values()}
    objective = registry.load("objectives", module.OBJECTIVE)
    assert objective.HEAD in ("tokens", "labels") and objective.UNIT
    assert set(module.METRICS) <= set(registry.names("metrics"))
    reader = "processor" if module.MEDIUM else "tokenizer"
    assert (objective.HEAD, module.MEDIUM) in served.CLASSES
    assert (module.inputs is None) != bool(module.MEDIUM)
    settings = [*module.SETTINGS]
    assert (
        parameters(module.encode) == ["example", reader, "max_length", *settings] and module.COLUMNS
    )
    assert {*settings} <= {*Run.model_fields}
    assert parameters(module.ask)[:2] == ["question", reader]
    assert parameters(module.guard) == parameters(module.stop_ids) == ["rows", "tokenizer"]
    with pytest.raises(LorakitError, match="no token is trained|nothing to tell apart"):
        module.guard([], None)


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_metrics(name):
    module = registry.load("metrics", name)
    assert module.NEEDS and set(module.NEEDS) <= {
        "answers",
        "labels",
        "pairs",
        "probabilities",
        "tokens",
    }
    assert isinstance(module.HIGHER_IS_BETTER, bool)
    assert parameters(module.rows)[:2] == ["references", "predictions"]
    assert parameters(module.score) == ["rows"]


@pytest.mark.parametrize("name", registry.names("models"))
def test_models(name):
    spec = registry.load("models", name).SPEC
    assert (
        isinstance(spec, Spec)
        and spec.path
        and spec.licence
        and spec.source
        and spec.target_modules
    )


@pytest.mark.parametrize("name", registry.names("engines"))
def test_engines(name):
    folder = PACKAGE / "engines"
    path = next(p for p in (folder / f"{name}.py", folder / name / "__init__.py") if p.exists())
    functions = {
        n.name: [a.arg for a in n.args.args]
        for n in tree(path).body
        if isinstance(n, ast.FunctionDef)
    }
    assert (
        functions["fits"] == ["facts", "spec"]
        and functions["suits"] == ["facts"]
        and functions["load"][0] == "run"
    )


# What surrounds the package


def test_the_conda_environment_agrees_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = (e["pip"] for e in entries if isinstance(e, dict))
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["notebooks"], *extras["test"]}
    assert sorted(p for p in pip if not p.startswith("-")) == sorted(wanted)
    assert f"python{project['requires-python']}" in entries


def cells(path):
    """(source, tags) of each code cell."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [
        ("".join(c["source"]), c["metadata"].get("tags", []))
        for c in content["cells"]
        if c["cell_type"] == "code"
    ]


def lines(source):
    return [line for line in source.splitlines() if line.strip()]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)


@each_notebook
def test_notebooks_are_stripped(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [c for c in content["cells"] if c["cell_type"] == "code"]
    assert not any(c["outputs"] or c["execution_count"] for c in code)
    assert not content["metadata"].get("widgets")


@each_notebook
def test_notebooks_are_short(path):
    counts = [len(lines(source)) for source, _ in cells(path)[1:]]
    assert sum(counts) <= 120 and max(counts) <= 15 and min(counts) >= 1, counts


@each_notebook
def test_parameters_are_one_cell_of_literals(path):
    (source,) = (source for source, tags in cells(path) if "parameters" in tags)
    for statement in ast.parse(source).body:
        assert isinstance(statement, (ast.Assign, ast.AnnAssign)), ast.unparse(statement)
        ast.literal_eval(statement.value)


@each_notebook
def test_notebook_cells_are_alive(path):
    for source, _ in cells(path):
        code = "\n".join(
            line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))
        )
        branches = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.If)]
        assert not any(isinstance(n.test, ast.Constant) for n in branches)  # `if False:`


def test_notebooks_begin_alike():
    address = re.compile(r'LORAKIT_SOURCE = ".*?"')
    assert {address.sub('LORAKIT_SOURCE = ""', cells(path)[0][0]) for path in NOTEBOOKS} == {
        FIRST_CELL
    }


@each_notebook
def test_notebooks_ask_colab_and_kaggle_for_a_gpu(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    about = content["metadata"]
    assert about["accelerator"] == "GPU" and about["colab"]["gpuType"] == "T4"
    assert about["kaggle"]["isGpuEnabled"] and about["kaggle"]["isInternetEnabled"]
    first = next(c for c in content["cells"] if c["cell_type"] == "code")
    assert first["metadata"]["cellView"] == "form" and "hide-input" in first["metadata"]["tags"]


@each_notebook
def test_notebooks_open_and_end_well(path):
    """A paragraph for beginners, a table of steps, links; at the end what can go wrong and what next."""
    content = json.loads(path.read_text(encoding="utf-8"))
    opening, ending = ("".join(content["cells"][i]["source"]) for i in (0, -1))
    assert "<!-- badges -->" in opening and "| step |" in opening and "T4" in opening
    assert opening.startswith("# ") and "**New to this?**" in opening and "](http" in opening
    planned = content["metadata"]["lorakit"]["planned"]
    assert {*planned} == {"T4", "Mac", "memory"} and "are estimates, not measurements" in opening
    assert "| |" not in opening.partition("<!-- steps -->")[2].partition("<!-- /steps -->")[0]
    assert "## What can go wrong" in ending and "## What next" in ending
    assert 'output_dir = "outputs"' not in "".join("".join(c["source"]) for c in content["cells"])


def test_functions_fit_a_screen_and_files_stay_short():
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > 400:
            long.append(f"{named(path)}: {lines} lines, 400 at most")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long.append(f"{named(path)}: {node.name} has {lines} lines, 60 at most")
    assert not long, "\n".join(long)


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by name: two of one name are not collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in {*names} if names.count(name) > 1] == []
