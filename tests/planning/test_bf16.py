"""bf16 on a CPU: by its units, and by a timed trial of the model's own shapes."""

import pytest
import torch

from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.planning import bf16_trial, choose
from lorakit.run import Run

AMX = Facts(bf16_units="AMX", memory=int(16e9))


def chosen(facts):
    return choose.precision(
        Run(model="tiny", data="-", engine="torch", task="chat"),
        facts,
        choose.base_model.spec("tiny"),
    )


@pytest.mark.parametrize(
    ("gain", "value", "words"),
    [
        (
            3.14,
            "bf16",
            "with AMX, products of this model's shapes take 1/3.1 of their fp32 time (timed)",
        ),
        (1.1, "fp32", "too little to give up 16 bits"),
        (0.4, "fp32", "too little to give up 16 bits"),
    ],
)
def test_the_trial_decides_where_there_are_units(monkeypatch, gain, value, words):
    monkeypatch.setattr(bf16_trial, "gain", lambda skeleton: gain)
    choice = chosen(AMX)
    assert choice.value == value and words in choice.reason


def test_without_units_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(bf16_trial, "gain", lambda skeleton: pytest.fail("was timed"))
    choice = chosen(Facts(memory=int(16e9)))
    assert choice.value == "fp32"
    assert choice.reason == "this CPU has no units for bf16 (AMX, AVX-512 BF16)"


@pytest.mark.parametrize(
    ("content", "units"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", "AMX"),
        ("flags\t\t: fpu avx2 avx512_bf16\n", "AVX-512 BF16"),
        ("Features\t: fp asimd bf16 i8mm\n", "Arm BF16"),
        ("flags\t\t: fpu avx avx2\n", ""),
        ("", ""),
    ],
)
def test_units_are_read_from_the_kernels_flags(monkeypatch, content, units):
    monkeypatch.undo()
    monkeypatch.setattr(hardware.Path, "read_text", lambda *a, **k: content)
    assert hardware.bf16_units() == units


def test_the_shapes_that_are_timed_are_the_models():
    with torch.device("meta"):
        skeleton = torch.nn.Sequential(
            *[torch.nn.Linear(64, 192) for _ in range(3)], torch.nn.Linear(192, 64)
        )
    assert bf16_trial.shapes_of(skeleton) == [(192, 64, 3), (64, 192, 1)]
    assert (
        bf16_trial._timed(bf16_trial.shapes_of(torch.nn.Sequential(torch.nn.Linear(64, 192)))) > 0
    )
