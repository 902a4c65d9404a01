"""The wheels for `make gpu WHEELS=`: bitsandbytes with its kernels for one CUDA version alone."""

import base64
import hashlib
import importlib.util
import zipfile

import pytest
from helpers.paths import ROOT

_spec = importlib.util.spec_from_file_location("gpu_wheels", ROOT / "bench" / "wheels.py")
wheels = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(wheels)

INFO = "bitsandbytes-0.50.2.dist-info"


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "bitsandbytes-0.50.2-py3-none-manylinux_2_24_x86_64.whl"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("cuda121", "cuda130", "rocm64", "cpu", "xpu"):
            made.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name * 9)
        made.writestr("bitsandbytes/__init__.py", "")
        made.writestr(f"{INFO}/RECORD", "old")
    return path


def test_one_library_stays_beside_the_cpus(wheel):
    wheels.slim(wheel, "130")
    with zipfile.ZipFile(wheel) as found:
        content = {name: found.read(name) for name in found.namelist()}
    record = content.pop(f"{INFO}/RECORD").decode()
    assert sorted(content) == [
        "bitsandbytes/__init__.py",
        "bitsandbytes/libbitsandbytes_cpu.so",
        "bitsandbytes/libbitsandbytes_cuda130.so",
    ]
    expected = [f"{INFO}/RECORD,,"]
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        expected.append(f"{name},sha256={digest},{len(data)}")
    assert sorted(record.split()) == sorted(expected)


def test_a_version_that_it_lacks_is_named(wheel):
    with pytest.raises(SystemExit, match=r"no library for CUDA 999; it has 121, 130"):
        wheels.slim(wheel, "999")


def test_what_is_installed_there_is_left_out(tmp_path):
    listed = tmp_path / "packages.txt"
    listed.write_text("# its packages\ntransformers==5.17.0\nPyYAML\nscikit_learn @ file:///x\n")
    assert wheels.installed(listed) == {"transformers", "pyyaml", "scikit-learn"}
    lacking = {line.split("==")[0] for line in wheels.lacking(wheels.installed(listed))}
    assert "bitsandbytes" in lacking and not lacking & {"transformers", "pyyaml", "torch"}
