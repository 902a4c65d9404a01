"""The offline bundle: what it holds, what it refuses, and a notebook run from it on a machine without a network."""

import hashlib
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT
from packaging.markers import default_environment

import lorakit
from lorakit.cli import main
from lorakit.common import processes
from lorakit.common.errors import LorakitError
from lorakit.data.sources import example_data
from lorakit.data.sources import source as found
from lorakit.notebook.bundle import contents, installer, rewrite, wheels
from lorakit.notebook.execute import execute

packing = importlib.import_module("lorakit.notebook.bundle.pack")
QUICKSTART = ROOT / "notebooks" / "quickstart.ipynb"
NAME = "lorakit-0.1.0-py3-none-any.whl"


@pytest.fixture
def registry(monkeypatch):
    """pip as it is called, and what it would write: a report of two packages, a wheel of a few bytes for each pin."""
    calls = []

    def pip(*arguments):
        calls.append(arguments)
        if "--report" in arguments:
            packages = [
                {
                    "name": "lorakit",
                    "version": "0.1.0",
                    "requires_dist": [
                        "torch>=2.8",
                        "numpy>=1.26",
                        'plotly>=5; extra == "notebooks"',
                        'timm; extra == "images"',
                    ],
                },
                {"name": "torch", "version": "2.13.0"},
                {"name": "numpy", "version": "2.4.6"},
            ]
            report = {
                "environment": {"extra": ""},
                "install": [{"metadata": each} for each in packages],
            }
            Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps(report))
        elif "--no-deps" in arguments:
            folder = Path(arguments[2])
            folder.mkdir(exist_ok=True)
            pins = [a for a in arguments if "==" in a] or ["lorakit==0.1.0"]
            for pin in pins:
                (folder / f"{pin.replace('==', '-')}-py3-none-any.whl").write_bytes(pin.encode())

    monkeypatch.setattr(wheels, "pip", pip)
    return calls


@pytest.fixture
def made(registry, tmp_path, base, rows_file):
    """A bundle of the quickstart with a base and rows of the user's own."""
    changes = {"model": base, "data": rows_file, "rank": "4", "output_dir": str(tmp_path / "o")}
    return packing.bundle(
        QUICKSTART, tmp_path / "made", changes, name="ada/field-reports", say=lambda _: None
    )


def notebook_cells(path):
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]


def refused(words, *arguments, **options):
    with pytest.raises(LorakitError) as error:
        packing.bundle(*arguments, say=lambda _: None, **options)
    assert words in str(error.value)


# What it holds


def test_every_file_is_in_the_manifest_with_size_and_hash(made, base, rows_file):
    manifest = json.loads((made / "bundle.json").read_text())
    here = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    assert here - {*manifest["files"]} == {"bundle.json", "dataset-metadata.json"}
    assert {
        "README.md",
        "quickstart.ipynb",
        "install_lorakit.py",
        "data/rows.jsonl",
        f"wheels/{NAME}",
        "wheels/numpy-2.4.6-py3-none-any.whl",
    } <= {*manifest["files"]}
    assert {
        f.removeprefix(f"model/{Path(base).name}/")
        for f in manifest["files"]
        if f.startswith("model/")
    } == {*os.listdir(base)}
    rows = Path(rows_file).read_bytes()
    assert manifest["files"]["data/rows.jsonl"] == {
        "bytes": len(rows),
        "sha256": hashlib.sha256(rows).hexdigest(),
    }
    assert (manifest["python"], manifest["platform"]) == installer.machine()
    assert manifest["copies"] == {
        f"model/{Path(base).name}": Path(base).name,
        "data/rows.jsonl": "rows.jsonl",
    }
    assert (manifest["needs"], manifest["lends"]) == (["torch"], ["plotly"])
    assert manifest["packages"] == {"lorakit": "0.1.0", "numpy": "2.4.6"}


def test_kaggle_takes_the_metadata(made):
    """https://github.com/Kaggle/kaggle-api/blob/main/docs/datasets_metadata.md"""
    assert json.loads((made / "dataset-metadata.json").read_text()) == {
        "title": "lorakit field-reports",
        "id": "ada/field-reports",
        "licenses": [{"name": "other"}],
        "description": "Packed by lorakit to train without internet. The wheels, the base model and the data keep "
        "their own licences.",
    }
    assert (
        packing._slug(Path("A b" + "c" * 60 + ".ipynb"), "")
        == "INSERT_OWNER_HERE/lorakit-a-b" + "c" * 39
    )


def test_the_notebook_names_the_copies_and_finds_them(made, base):
    first, settings, finds, *rest = notebook_cells(made / "quickstart.ipynb")
    files = json.loads((made / "bundle.json").read_text())["files"]
    assert first == rewrite.first_cell(f"bundle:{installer.pin(files)}")
    assert f'model = "model/{Path(base).name}"  # a name from lorakit/models/families/' in settings
    assert (
        'data = "data/rows.jsonl"\n' in settings
        and "rank = 4\n" in settings
        and "alpha = 32\n" in settings
    )
    assert '\noutput_dir = "outputs"  # ' in settings
    assert finds.splitlines()[-1] == "model, data = unpacked(model), unpacked(data)"
    assert rest == notebook_cells(QUICKSTART)[2:]


def test_copies_are_found_where_the_bundle_is(made, tmp_path, monkeypatch):
    inside, attached = made / "data", tmp_path / "input"
    attached.mkdir()
    monkeypatch.setattr(packing, "ATTACHED", str(attached))
    for place in (made, inside, made.parent):  # in it, below it, beside it
        monkeypatch.chdir(place)
        assert Path(packing.unpacked("data/rows.jsonl")) == made / "data/rows.jsonl"
        assert (
            packing.unpacked("tiny") == "tiny"
            and packing.unpacked("data/others.jsonl") == "data/others.jsonl"
        )
    monkeypatch.chdir(attached)
    assert packing.unpacked("data/rows.jsonl") == "data/rows.jsonl"
    made.rename(attached / "mine")
    assert Path(packing.unpacked("data/rows.jsonl")) == attached / "mine/data/rows.jsonl"


def test_settings_become_a_notebook_and_settings(registry, tmp_path, base, rows_file):
    file = tmp_path / "relief.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "relief",
                "model": "tiny",
                "data": rows_file,
                "columns": {"answer": "é"},
                "output_dir": "/mine",
            }
        )
    )
    made = packing.bundle(file, tmp_path / "made", {"rank": 8}, say=lambda _: None)
    assert yaml.safe_load((made / "run.yaml").read_text()) == {
        "name": "relief",
        "model": "tiny",
        "data": "data/rows.jsonl",
        "columns": {"answer": "é"},
        "rank": 8,
    }
    _, settings, finds, run, *_ = notebook_cells(made / "relief.ipynb")
    assert settings.splitlines() == [
        'name = "relief"',
        'model = "tiny"',
        'data = "data/rows.jsonl"',
        "columns = {'answer': 'é'}",
        "rank = 8",
    ]
    assert finds.endswith("\ndata = unpacked(data)")
    assert run == (
        "run = lorakit.Run(name=name, model=model, data=data, columns=columns, rank=rank)\n"
        "job = lorakit.launch(run).watch()"
    )
    assert "lorakit train run.yaml" in (made / "README.md").read_text()


def test_literals_are_replaced_and_nothing_else():
    source = 'a = "é"  # "é" = 1\nb: int = 2\nc = [1,\n     2]  # two\nd = f(1)\na2 = "é"\n'
    assert rewrite.assigned(
        source, {"a": 'x"y', "b": None, "c": {"k": (1,)}, "d": 0, "a2": "é"}
    ) == ('a = "x\\"y"  # "é" = 1\nb: int = None\nc = {\'k\': (1,)}  # two\nd = 0\na2 = "é"\n')


def test_an_older_notebook_gets_the_first_cell():
    old = {"cells": [{"cell_type": "code", "metadata": {}, "source": ["import lorakit"]}]}
    made = rewrite.rewritten(old, {}, [])
    assert ["".join(c["source"]) for c in made["cells"]] == [rewrite.FIRST_CELL, "import lorakit"]
    assert len(old["cells"]) == 1


def test_pictures_that_a_table_names_come_along(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    (folder / "shots").mkdir(parents=True)
    leaves = sorted(example_data("leaves").rglob("*.png"))[:3]
    for i, place in enumerate((folder / "shots/0.png", folder / "1.png", tmp_path / "2.png")):
        shutil.copy(leaves[i], place)
    table = folder / "t.csv"
    table.write_text("image,caption\nshots/0.png,a\n1.png,b\n2.png,c\ngone.png,d\n")
    monkeypatch.chdir(tmp_path)  # the third is found from here alone
    it = found(str(table))
    assert set(contents.files_of(it, "data/t.csv")) == {
        "data/t.csv",
        "data/shots/0.png",
        "data/1.png",
        "data/2.png",
    }
    for bad in ("../2.png", str(leaves[0])):
        table.write_text(f"image,caption\n{bad},a\n")
        with pytest.raises(LorakitError, match=r"t.csv:2: (../2.png|/.*png) is outside"):
            contents.files_of(it, "data/t.csv")
    assert len(contents.files_of(found("data/leaves"), "data/leaves")) == len(
        list(example_data("leaves").rglob("*.*"))
    )


def test_a_base_in_the_hubs_cache_becomes_a_folder(registry, tmp_path, base, monkeypatch):
    """huggingface_hub keeps blobs, and snapshots of links to them."""
    from huggingface_hub import constants

    cache, sha = tmp_path / "cache/models--ada--base", "5" * 40
    (cache / "snapshots" / sha).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(sha)
    for i, file in enumerate(sorted(Path(base).iterdir())):
        (cache / "blobs").mkdir(exist_ok=True)
        shutil.copy(file, cache / "blobs" / str(i))
        (cache / "snapshots" / sha / file.name).symlink_to(f"../../blobs/{i}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    out = packing.bundle(QUICKSTART, tmp_path / "out", {"model": "ada/base"}, say=lambda _: None)
    copies = sorted((out / "model/base").iterdir())
    assert [c.name for c in copies] == sorted(os.listdir(base)) and not any(
        c.is_symlink() for c in copies
    )
    assert (out / "model/base/model.safetensors").read_bytes() == (
        Path(base) / "model.safetensors"
    ).read_bytes()
    assert 'model = "model/base"' in notebook_cells(out / "quickstart.ipynb")[1]


def test_parallel_text_comes_in_pairs(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "de.txt").write_text("Ja.\n")
    (tmp_path / "there/en.txt").write_text("Yes.\n")
    form = {"parallel": {"target": str(tmp_path / "there/en.txt")}}
    files, _, placed = contents.gathered({"data": str(tmp_path / "de.txt"), "format": form})
    assert files == {"data/de.txt": tmp_path / "de.txt", "data/en.txt": tmp_path / "there/en.txt"}
    assert placed == {"data": "data/de.txt", "format": {"parallel": {"target": "en.txt"}}}


# Hashes


@pytest.mark.parametrize(
    "change",
    [
        {"lends": ["-e", "git+https://evil.example.com/x"]},  # pip would run its setup.py
        {"lends": ["--extra-index-url=https://evil.example.com"]},
        {"lends": ["https://evil.example.com/x.whl"]},
        {"needs": ["x y"]},
        {"extras": ["x]==9 @ https://evil.example.com/x.whl #"]},
        {"lorakit": "1.0 @ https://evil.example.com/x.whl"},
        {"files": {"../outside.whl": {"bytes": 1, "sha256": "0"}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}},
        {"files": {"wheels\\..\\x": {"bytes": 1, "sha256": "0"}}},
    ],
)
def test_a_manifest_hands_pip_no_options_and_no_addresses(change, tmp_path, monkeypatch):
    """The first cell of a notebook knows the bundle's wheels by their hashes, and nothing else of its manifest."""
    monkeypatch.setattr(installer, "pip", lambda *_: pytest.fail("pip was started"))
    whole = {"lorakit": "1.0", "python": "3.11", "platform": "linux_x86_64", "extras": ["studio"]}
    whole |= {"needs": [], "lends": ["jupyterlab", "ruamel.yaml"], "files": {}}
    (tmp_path / "bundle.json").write_text(json.dumps(whole))
    assert installer.manifest(tmp_path)["lends"] == ["jupyterlab", "ruamel.yaml"]
    (tmp_path / "bundle.json").write_text(json.dumps(whole | change))
    with pytest.raises(SystemExit, match="is no manifest of a bundle"):
        installer.install(tmp_path)


def test_what_changed_on_the_way_is_named(made, capsys):
    assert main(["bundle", str(made), "--verify"]) == 0
    assert "all as packed" in capsys.readouterr().out
    (made / "data/rows.jsonl").write_text("{}")
    weights = next(made.rglob("model.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    (made / "README.md").unlink()
    assert main(["bundle", str(made), "--verify"]) == 1
    said = capsys.readouterr().err
    total = len(json.loads((made / "bundle.json").read_text())["files"])
    assert f"3 of {total} files differ" in said and "README.md: is missing" in said
    assert "data/rows.jsonl: 2 bytes, packed were" in said
    assert "model.safetensors: its content is not what was packed (SHA-256)" in said
    with pytest.raises(SystemExit, match="3 of"):
        installer.main(["--verify"], made)
    whole = json.loads((made / "bundle.json").read_text())
    odd = ([], 5, {"wheels/a.whl": "x"}, {"wheels/a.whl": {}})
    for content in ([], *({**whole, "files": files} for files in odd), {**whole, "needs": 5}):
        (made / "bundle.json").write_text(json.dumps(content))
        assert main(["bundle", str(made), "--verify"]) == 1
        assert "is no manifest of a bundle" in capsys.readouterr().err


# Refusals


def test_what_is_missing_is_refused_before_anything_is_written(
    registry, tmp_path, base, rows_file, monkeypatch
):
    there = tmp_path / "there"
    there.mkdir()
    (there / "a").write_text("")
    refused("is there and not empty", QUICKSTART, there)
    out = tmp_path / "out"
    refused("no such notebook", tmp_path / "no.ipynb", out)
    refused("no such file", tmp_path / "no.yaml", out)
    refused("nothing.jsonl: no such file", QUICKSTART, out, {"data": "nothing.jsonl"})
    refused("has no parameter 'ranc'; did you mean 'rank'?", QUICKSTART, out, {"ranc": 8})
    refused(
        "owner/base is not on this machine; first: hf download owner/base",
        QUICKSTART,
        out,
        {"model": "owner/base"},
    )
    refused(
        "--extra imagess: lorakit has no such extra; did you mean 'images'?",
        QUICKSTART,
        out,
        extras=["imagess"],
    )
    refused("Kaggle names a data set OWNER/NAME", QUICKSTART, out, name="Mine")
    cut = tmp_path / "cut"
    shutil.copytree(base, cut)
    (cut / "model.safetensors").unlink()
    refused("lacks its weights", QUICKSTART, out, {"model": str(cut)})
    (cut / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-2.safetensors"}})
    )
    refused("lacks model-2.safetensors", QUICKSTART, out, {"model": str(cut)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    refused("GB left; free some space", QUICKSTART, out, {"model": base})
    assert not out.exists() and not list(tmp_path.glob("*.part*"))


def test_a_base_without_a_tokenizer_is_refused(registry, tmp_path, base):
    shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    refused("could not be loaded", QUICKSTART, tmp_path / "out", {"model": str(tmp_path / "bare")})


def test_a_cut_bundle_leaves_nothing(registry, tmp_path, monkeypatch):
    def stop(*_):
        assert list(tmp_path.glob("out.part*/wheels"))
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_describe", stop)
    (tmp_path / f"out{processes.part(4194304)}").mkdir()  # of a process that was killed
    with pytest.raises(KeyboardInterrupt):
        packing.bundle(QUICKSTART, tmp_path / "out", say=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_pip_fails_in_its_own_words(tmp_path):
    with pytest.raises(LorakitError) as error:
        wheels.pip(
            "wheel", "--no-index", "--find-links", str(tmp_path), "no-such-package-of-anybody==1"
        )
    assert str(error.value).startswith("pip wheel failed:\nERROR: Could not find a version")
    assert (
        "No matching distribution found for no-such-package-of-anybody==1\nIs the package"
        in str(error.value)
    )


# The wheels


def test_what_only_a_left_out_package_needs_is_left_out_too():
    packages = {
        "lorakit": [
            "a>=1",
            "Tor.ch",
            'jup[x]; extra == "notebooks"',
            'mac; sys_platform == "darwin"',
        ],
        "tor-ch": ["big", "shared"],
        "a": ["shared", 'old; python_version < "3.12"'],
        "jup": ['y; extra == "x"'],
        "big": [],
        "shared": [],
        "old": [],
        "y": [],
        "mac": [],
    }
    report = {
        "environment": {"python_version": "3.11", "sys_platform": "linux", "extra": ""},
        "install": [
            {"metadata": {"name": name, "version": "1", "requires_dist": needs}}
            for name, needs in packages.items()
        ],
    }
    names = lambda *given: (lambda found, met: (sorted(found), met))(*wheels.needed(report, *given))
    assert names((), ["tor_ch"]) == (["a", "lorakit", "old", "shared"], ["tor-ch"])
    assert names(("notebooks",), ["tor_ch"], "3.12") == (
        ["a", "jup", "lorakit", "shared", "y"],
        ["tor-ch"],
    )
    for there, included, met in (
        ({"A": "1"}, ["lorakit"], ["a", "tor-ch"]),
        ({"A": "0.5", "shared": "2"}, ["a", "lorakit", "old"], ["shared", "tor-ch"]),  # too old
    ):
        found = wheels.needed(report, (), ["tor_ch"], there=there)
        assert (sorted(found[0]), found[1]) == (included, met)
    assert names((), ["absent"]) == (["a", "big", "lorakit", "old", "shared", "tor-ch"], [])


def test_a_hosted_image_stands_for_python_platform_and_packages():
    python, platform, there = packing.image_of("kaggle")
    assert (python, platform) == ("3.12", "manylinux_2_35_x86_64")
    assert there["transformers"] == "5.0.0" and there["torch"].startswith("2.10.0")
    with pytest.raises(LorakitError) as error:
        packing.image_of("kagle")
    assert (error.value.setting, error.value.value) == ("for", "kagle")
    asked = packing.asked_for(ROOT / "notebooks/tune_settings.ipynb")
    assert [one.partition(">")[0] for one in asked] == ["optuna"]


def test_another_python_is_asked_for_in_wheels_alone(registry, tmp_path):
    out = packing.bundle(
        QUICKSTART,
        tmp_path / "out",
        python="3.12",
        platform="macosx_14_0_arm64",
        extras=["images"],
        say=lambda _: None,
    )
    build, source, ask, fetch = registry
    other = (
        "--python-version",
        "3.12",
        "--platform",
        "macosx_14_0_arm64",
        "--only-binary",
        ":all:",
    )
    assert build[-2:] == ("--no-deps", str(ROOT)) and source[-1] == "rouge-score"
    assert ask[-1].endswith(f"{NAME}[images,notebooks]") and ask[3:9] == other
    assert fetch[0] == "download" and other == fetch[4:10] and fetch[-1] == "numpy==2.4.6"
    manifest = json.loads((out / "bundle.json").read_text())
    assert (manifest["python"], manifest["platform"], manifest["extras"]) == (
        "3.12",
        other[3],
        ["images"],
    )
    assert wheels.platforms("manylinux_2_13_x86_64") == [
        "manylinux_2_13_x86_64",
        "manylinux_2_12_x86_64",
        "manylinux2010_x86_64",
        "manylinux_2_11_x86_64",
        "manylinux_2_10_x86_64",
        "manylinux_2_9_x86_64",
        "manylinux_2_8_x86_64",
        "manylinux_2_7_x86_64",
        "manylinux_2_6_x86_64",
        "manylinux_2_5_x86_64",
        "manylinux1_x86_64",
    ]


def test_the_wheel_of_what_is_installed(tmp_path):
    """Without a clone it is packed again from the installed files, without what the installer added."""
    site, about = tmp_path / "site", "solo-1.0.dist-info"
    (site / "solo/__pycache__").mkdir(parents=True)
    (site / about).mkdir()
    content = {
        "solo/__init__.py": "WHERE = 'here'\n",
        "solo/__pycache__/x.pyc": "",
        f"{about}/INSTALLER": "pip\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: solo\nVersion: 1.0\n",
        f"{about}/WHEEL": "Tag: py3-none-any\n",
        f"{about}/direct_url.json": "{}",
    }
    for name, text in content.items():
        (site / name).write_text(text)
    listed = [*content, f"{about}/RECORD", "../bin/solo"]
    (site / about / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    wheel = wheels.packed_again(next(metadata.distributions(path=[str(site)])), tmp_path)
    assert wheel == tmp_path / "solo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as packed_files:
        inside = {name: packed_files.read(name) for name in packed_files.namelist()}
    lines = inside.pop(f"{about}/RECORD").decode().splitlines()
    assert sorted(inside) == [f"{about}/METADATA", f"{about}/WHEEL", "solo/__init__.py"]
    # printf "WHERE = 'here'\n" | openssl dgst -sha256 -binary | basenc --base64url
    hashed = "solo/__init__.py,sha256=I8cTE1wACmkVi3CRw7gUmG2cuU2S8PfITSsQ9gKAsl0,15"
    assert len(lines) == 4 and lines[::3] == [hashed, f"{about}/RECORD,,"]


# The installer


def test_the_installer_says_why_it_cannot(made):
    path = made / "bundle.json"
    content = json.loads(path.read_text()) | {
        "lorakit": "9.9.9"
    }  # not the one that is installed here

    def ends(words, **changes):
        path.write_text(json.dumps(content | changes))
        with pytest.raises(SystemExit) as error:
            runpy.run_path(str(made / "install_lorakit.py"))["install"]()
        for each in words:
            assert each in str(error.value)

    ends(
        ["tor-ch-of-nobody is not installed here, and this bundle was made without it"],
        needs=["tor-ch-of-nobody"],
    )
    version, platform = installer.machine()
    ends(["pip could not install lorakit from these wheels", "ERROR: "], needs=[])
    ends(
        [
            f"The wheels are for Python 2.7 on win_arm, this is Python {version} on {platform}. Make the bundle again: "
            f"lorakit bundle … --python {version} --platform …"
        ],
        needs=[],
        python="2.7",
        platform="win_arm",
    )
    path.write_text(json.dumps(content))
    assert "The wheels are for" not in "".join(
        installer.refusal(made, installer.manifest(made), "ERROR: none fits")
    )
    assert (
        installer.kind("manylinux2014_aarch64")
        == installer.kind("linux_aarch64")
        != installer.kind("linux_x86_64")
    )
    assert (
        installer.kind("macosx_11_0_arm64")
        == installer.kind("macosx_14_2_arm64")
        != installer.kind("linux_aarch64")
    )
    (made / "wheels" / NAME).write_bytes(b"cut")
    ends(["wheels are damaged", f"wheels/{NAME}: 3 bytes, packed were"], needs=[])


@pytest.fixture
def first_cell(tmp_path, monkeypatch):
    """Runs the first cell in an empty folder, where a folder is called lorakit; returns what it would give to pip."""
    (tmp_path / "here/lorakit/docs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("LORAKIT_SOURCE", raising=False)
    monkeypatch.setenv("LORAKIT_BUNDLE", "")
    namespace = types.SimpleNamespace(origin=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: namespace)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(lorakit, "install_missing", lambda: None)
    installed = []
    monkeypatch.setattr(subprocess, "check_call", lambda command: installed.append(command[-1]))

    def run(address=""):
        installed.clear()
        exec(rewrite.first_cell(address), {})
        return installed

    return run


def test_the_first_cell_finds_lorakit_near_the_notebook(first_cell, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="put its wheel or a clone beside this notebook"):
        first_cell()
    assert first_cell("git+https://example.org/ada/lorakit@v1") == [
        "git+https://example.org/ada/lorakit@v1"
    ]
    manifest(tmp_path / "here/mine")
    assert first_cell("git+https://x/y") == ["mine/wheels/lorakit-0.1.0-py3-none-any.whl"]
    assert os.environ["LORAKIT_BUNDLE"] == str(tmp_path / "here/mine")
    (tmp_path / "here/lorakit-0.2.0-py3-none-any.whl").touch()
    assert first_cell() == ["lorakit-0.2.0-py3-none-any.whl"]
    monkeypatch.setenv("LORAKIT_SOURCE", "mine.whl")
    assert first_cell() == ["mine.whl"]


def manifest(folder, content=b"wheel"):
    """A bundle with a wheel of lorakit; what its notebook knows it by."""
    name = "wheels/lorakit-0.1.0-py3-none-any.whl"
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    files = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (folder / "bundle.json").write_text(json.dumps({"files": files}))
    return f"bundle:{installer.pin(files)}"


def test_the_first_cell_takes_a_clone_from_the_notebook_s_own_folder(first_cell, tmp_path):
    clone = tmp_path / "here/lorakit/lorakit"
    clone.mkdir()
    (clone / "__init__.py").touch()
    assert first_cell() == [] and sys.path[0] == str(tmp_path / "here/lorakit")


def test_the_first_cell_runs_nothing_that_lies_in_a_folder_of_data(first_cell, tmp_path):
    data = tmp_path / "here/data"
    (data / "lorakit").mkdir(parents=True)
    (data / "lorakit/__init__.py").write_text("raise SystemExit('ran')")
    (data / "install_lorakit.py").write_text("raise SystemExit('ran')")
    (data / "lorakit-9.9-py3-none-any.whl").touch()
    (data / "wheels").mkdir()
    (data / "wheels/lorakit-9.9-py3-none-any.whl").touch()
    before = list(sys.path)
    with pytest.raises(SystemExit, match="put its wheel or a clone beside this notebook"):
        first_cell()
    assert sys.path == before
    manifest(data)
    (data / "wheels/lorakit-9.9-py3-none-any.whl").unlink()
    (data / "wheels/lorakit-0.1.0-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(SystemExit, match="put its wheel or a clone beside this notebook"):
        first_cell()


def test_a_packed_notebook_takes_its_own_bundle_alone(first_cell, tmp_path):
    manifest(tmp_path / "here/attacker", b"another wheel")
    meant = manifest(tmp_path / "here/mine")
    assert first_cell(meant) == ["mine/wheels/lorakit-0.1.0-py3-none-any.whl"]
    shutil.rmtree(tmp_path / "here/mine")
    with pytest.raises(SystemExit, match="attach its bundle as it was packed"):
        first_cell(meant)


def wheel(folder, name, version, body="", requires=""):
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", body)
        file.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        file.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def real_bundle(tmp_path):
    """A bundle of two small wheels, and where pip puts what it installs from it."""
    folder, site = tmp_path / "bundle", tmp_path / "site"
    (folder / "wheels").mkdir(parents=True)
    wheel(folder / "wheels", "fakelorakit", "0.1.0", requires="helperx>=1")
    wheel(folder / "wheels", "helperx", "1.0", "V = 'packed'")
    return folder, packing.listed(folder), site


def test_pip_installs_the_listed_wheels_by_their_hashes(real_bundle):
    folder, files, site = real_bundle
    assert installer.install_hashed(folder, files, ["fakelorakit"], target=str(site)) == ""
    assert {p.name for p in site.glob("*.py")} == {"fakelorakit.py", "helperx.py"}


def test_a_wheel_exchanged_after_the_look_at_the_manifest_is_not_installed(real_bundle):
    folder, files, site = real_bundle
    wheel(folder / "wheels", "helperx", "1.0", "V = 'planted'")
    said = installer.install_hashed(folder, files, ["fakelorakit"], target=str(site))
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said and not site.exists()


# The whole way


@pytest.mark.slow
def test_settings_run_as_a_notebook_and_as_they_are(
    registry, tmp_path, base, rows_file, monkeypatch
):
    file = tmp_path / "relief.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "relief",
                "model": base,
                "data": rows_file,
                "max_updates": 4,
                "rank": 4,
                "max_length": 128,
                "max_new_tokens": 8,
                "quantization": "none",
            }
        )
    )
    made = packing.bundle(file, tmp_path / "made", say=lambda _: None)
    monkeypatch.chdir(tmp_path)  # the bundle lies in it
    execute(made / "relief.ipynb", {}, tmp_path / "notebooks")
    folder = lorakit.Folder("outputs/relief")
    assert folder.record["status"] == "done"
    ran = lorakit.Run.read(folder / "run.yaml")
    assert (ran.data, ran.model) == (
        str(made / "data/rows.jsonl"),
        str(made / "model" / Path(base).name),
    )
    monkeypatch.chdir(made)
    assert main(["train", "run.yaml"]) == 0
    assert lorakit.Folder(made / "outputs/relief").record["status"] == "done"


CHROOT = """set -e
mount --make-rprivate /
mount -t tmpfs none "$ROOT"
for place in /usr /bin /sbin /lib /lib64 /etc /dev /proc /sys "$BASE" "$VENV" "$WORKING:/kaggle/working" \\
    "$BUNDLE:/kaggle/input/lorakit-quickstart"; do
  [ -e "${place%%:*}" ] || continue
  mkdir -p "$ROOT${place##*:}"; mount --rbind "${place%%:*}" "$ROOT${place##*:}"
done
mount -o remount,bind,ro "$ROOT/kaggle/input/lorakit-quickstart"
mkdir -p "$ROOT/tmp" "$ROOT/home"
ip link set lo up
exec chroot "$ROOT" env -i HOME=/home PATH="$VENV/bin:/usr/bin:/bin" OMP_NUM_THREADS=1 /bin/sh -ec "$COMMANDS"
"""
COMMANDS = """cd /kaggle/working
if touch /kaggle/input/lorakit-quickstart/x 2>/dev/null; then echo "the bundle can be written"; exit 1; fi
python -c "import socket; print('network:', [name for _, name in socket.if_nameindex()])"
python -c "import importlib.util as i; print('lorakit:', i.find_spec('lorakit'))"
python -m pip install -q --no-index --find-links /kaggle/input/lorakit-quickstart/wheels papermill ipykernel
papermill -k python3 --no-progress-bar /kaggle/input/lorakit-quickstart/quickstart.ipynb executed.ipynb \\
  -p max_updates 40 -p max_rows 300
lorakit bundle --verify /kaggle/input/lorakit-quickstart
"""


def target(folder):
    """A new environment that holds pip, torch and what torch needs, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    here = {"packages": [{"name": "lorakit", "version": "", "requires_dist": ["pip", "torch"]}]}
    here["packages"] += [
        {"name": d.metadata["Name"], "version": d.version, "requires_dist": d.requires or ()}
        for d in metadata.distributions()
        if d.metadata["Name"] != "lorakit"
    ]
    report = {
        "environment": default_environment(),
        "install": [{"metadata": each} for each in here["packages"]],
    }
    site = next(folder.glob("lib/python3*/site-packages"))
    for name in {*wheels.needed(report, (), ())[0]} - {"lorakit"}:
        for file in metadata.files(name):
            if file.parts[0] != ".." and file.locate().is_file():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file.locate(), site / file)
                except OSError:  # another disk
                    shutil.copyfile(file.locate(), site / file)
    return folder


@pytest.mark.slow
def test_the_quickstart_runs_from_a_bundle_without_a_network(tmp_path):
    """As on Kaggle with the internet off: the bundle read-only in /kaggle/input, an environment that holds torch alone,
    no network but the loopback, and none of this machine's other files."""
    space = ["unshare", "--net", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*space, "true"], capture_output=True).returncode
    ):
        pytest.skip("namespaces without a network are not permitted here (unshare --net --mount)")
    made = packing.bundle(QUICKSTART, tmp_path / "bundle")
    (tmp_path / "root").mkdir()
    working = tmp_path / "working"
    working.mkdir()
    places = {
        "ROOT": tmp_path / "root",
        "BASE": sys.base_prefix,
        "VENV": target(tmp_path / "venv"),
        "BUNDLE": made,
        "WORKING": working,
        "COMMANDS": COMMANDS,
    }
    done = subprocess.run(
        [*space, "sh", "-c", CHROOT],
        capture_output=True,
        text=True,
        env={**os.environ, **{k: str(v) for k, v in places.items()}},
    )
    (tmp_path / "said.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (
        "network: ['lo']" in done.stdout
        and "lorakit: None" in done.stdout
        and "all as packed" in done.stdout
    )
    cells = json.loads((working / "executed.ipynb").read_text())["cells"]
    shown = [out for cell in cells for out in cell.get("outputs", [])]
    assert not [out for out in shown if out["output_type"] == "error"]
    assert "lorakit==0.1.0 is installed from /kaggle/input/lorakit-quickstart" in json.dumps(shown)
    folder = lorakit.Folder(working / "outputs/quickstart")
    assert folder.record["status"] == "done" and folder.record["machine"]["place"] == "kaggle"
    assert (
        lorakit.Run.read(folder / "run.yaml").data
        == "/kaggle/input/lorakit-quickstart/data/triage.jsonl"
    )
    assert folder.scores["loss"]["after"] < folder.scores["loss"]["before"]
