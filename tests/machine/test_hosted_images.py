"""What lorakit needs, against the published package lists of Colab and Kaggle: nothing of an image is replaced."""

import importlib

import pytest

from lorakit.machine.packages import declared, normal

image_of = importlib.import_module("lorakit.notebook.bundle.pack").image_of


@pytest.mark.parametrize("host", ["colab", "kaggle"])
def test_an_image_lacks_two_packages_and_none_of_its_own_is_too_old(host):
    there = {normal(name): version for name, version in image_of(host)[2].items()}
    wanted = {normal(r.name): r for r in declared()}
    assert sorted(wanted.keys() - there.keys()) == ["bitsandbytes", "sacrebleu"]
    assert not [
        f"{name} {there[name]}: {requirement.specifier}"
        for name, requirement in wanted.items()
        if name in there and not requirement.specifier.contains(there[name].split("+")[0])
    ]
