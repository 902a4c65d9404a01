"""Which packages are missing, too old, or replaced under a running process; an old torchao does not stop PEFT."""

import subprocess
import sys
import textwrap
import types

import pytest
from packaging.requirements import Requirement

from lorakit.common.errors import LorakitError
from lorakit.machine import packages

FAKE = {"torch": "2.10.0+cu128", "pyarrow": "25.0.0", "pip": "24.0", "datasets": "3.1"}


@pytest.fixture
def image(monkeypatch):
    """An environment that holds exactly the packages of `FAKE`."""
    monkeypatch.setattr(packages, "installed", lambda name: FAKE.get(packages.normal(name)))


def test_missing_and_too_old_packages_are_found(image):
    wanted = [Requirement(r) for r in ("torch>=2.8", "datasets>=4.0", "sacrebleu>=2.5", "pip")]
    assert packages.unmet(wanted) == [
        packages.Unmet("datasets>=4.0", "3.1"),
        packages.Unmet("sacrebleu>=2.5", None),
    ]


def test_an_extra_that_is_missing_is_named_with_its_own_packages(image):
    with pytest.raises(LorakitError) as error:
        packages.require("gguf", "torch", "xllamacpp", purpose="export to gguf")
    assert error.value.value == ["gguf", "xllamacpp"]
    assert error.value.cure.startswith("run: pip install 'gguf>=")
    assert "torch" not in error.value.cure and "lorakit[" not in error.value.cure
    packages.require("torch", purpose="nothing")


def test_a_package_replaced_under_the_process_is_found(image, monkeypatch):
    old, same = types.ModuleType("pyarrow"), types.ModuleType("torch")
    old.__version__, same.__version__ = "18.1.0", "2.10.0"
    monkeypatch.setitem(sys.modules, "pyarrow", old)
    monkeypatch.setitem(sys.modules, "torch", same)
    for other in set(packages.WATCHED.values()) - {"pyarrow", "torch"}:
        monkeypatch.delitem(sys.modules, other, raising=False)
    assert packages.replaced() == [("pyarrow", "18.1.0", "25.0.0")]


def test_every_declared_requirement_is_met_here():
    assert packages.unmet(packages.declared()) == []
    assert {"images", "sound", "metrics", "notebooks", "export"} <= {*packages.extras()}
    assert "gguf" in {r.name for r in packages.declared("export")}
    assert "gguf" not in {r.name for r in packages.declared()}


def test_peft_works_beside_an_old_torchao(tmp_path):
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao/__init__.py").touch()
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n"
    )
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import torch, peft
        from lorakit.machine.packages import ignored_torchao, tolerate_old_packages
        base = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4))
        config = peft.LoraConfig(target_modules=["0"], r=2)
        try:
            peft.get_peft_model(base(), config)
        except ImportError as error:
            print(error)
        tolerate_old_packages(), tolerate_old_packages()
        print(type(peft.get_peft_model(base(), config)).__name__)
        print(ignored_torchao({"torchao": "0.10.0"}), ignored_torchao({"torchao": "0.18.0"}))
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert "incompatible version of torchao" in said[0]
    assert said[1:] == ["PeftModel", "True False"]


def test_datasets_does_not_ask_a_torchvision_without_videos(monkeypatch):
    from datasets import Dataset, config

    from lorakit.tasks.rows import Rows

    monkeypatch.setattr(config, "TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(packages, "installed", {"torchvision": "0.25.0"}.get)
    Rows(Dataset.from_dict({"ids": [[1, 2, 3]]}))
    assert config.TORCHVISION_AVAILABLE is True
    monkeypatch.setattr(packages, "installed", {"torchvision": "0.26.0+cu130"}.get)
    rows = Rows(Dataset.from_dict({"ids": [[1, 2, 3]]}))
    assert config.TORCHVISION_AVAILABLE is False
    assert rows[0]["ids"].tolist() == [1, 2, 3]
