"""`learning_rate: auto`: a range test that leaves no trace but the rate, is noted with its curve, and can be resumed."""

import json
import types

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.runs import repeat_here

from lorakit.common.errors import LorakitError
from lorakit.results.evidence import kept
from lorakit.run import Run
from lorakit.training import proof, range_test
from lorakit.training.finetune import finetune

SETTINGS = dict(
    data=str(ROOT / "data/triage.jsonl"), max_rows=60, max_updates=6, max_length=96, max_new_tokens=2,
    quantization="none", precision="fp32", checkpoint_every=2, metrics=["loss"],
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = Run(
        name="a", learning_rate="auto", output_dir=tmp_path_factory.mktemp("auto"), **SETTINGS
    )
    with pytest.MonkeyPatch.context() as here:
        here.setattr(proof, "subprocess", types.SimpleNamespace(run=repeat_here))
        return finetune(run)


def adapter(folder):
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def test_the_rate_is_stated_with_its_curve(found):
    record = found.record
    rate, reason = record["choices"]["learning_rate"]
    test = record["range_test"]
    assert 1e-4 < rate < 1e-2 and test["chosen"] == rate and "a tenth of that" in reason
    assert len(test["rates"]) == len(test["losses"]) >= 20
    assert test["losses"][:4] == [1, 1, 1, 1] and min(test["losses"]) < 0.9
    assert Run.read(found.settings).learning_rate == rate
    assert record["settings"]["learning_rate"] == "auto"
    assert max(line["learning_rate"] for line in found.history()[0]) == rate
    (evidence,) = kept(found)
    assert evidence.name == "learning_rate" and f"{rate:g}" in evidence.headline
    assert "Which learning rate?" in (found / "report.md").read_text()
    assert (found / "evidence/learning_rate.png").stat().st_size > 5000


@pytest.mark.slow
def test_it_leaves_no_trace_and_can_be_resumed(found, tmp_path, monkeypatch, quick):
    rate = Run.read(found.settings).learning_rate
    named = finetune(Run(name="b", learning_rate=rate, output_dir=tmp_path, **SETTINGS))
    assert adapter(named) == adapter(found)
    cut = Run(name="c", learning_rate="auto", output_dir=tmp_path, **SETTINGS)
    finetune(cut.with_(max_minutes=1e-9))
    assert json.loads((tmp_path / "c/record.json").read_text())["status"] == "stopped"
    monkeypatch.setattr(range_test, "measured", None)  # not made again
    assert adapter(finetune(cut)) == adapter(found)


def test_the_curve_decides():
    rates = np.geomspace(1e-5, 1e-1, 40).tolist()
    falling = [1.0] * 20 + [1 - 0.04 * i for i in range(10)] + [0.7] * 5 + [1.2] * 5
    rate, reason = range_test.chosen(rates, falling)
    assert 1e-3 < rate < 1e-2 and "40 updates" in reason
    with pytest.raises(LorakitError, match="falls at no learning rate") as error:
        range_test.chosen(rates, [1.0] * 40)
    assert (error.value.setting, error.value.value) == ("learning_rate", "auto")
    with pytest.raises(LorakitError, match="not finite"):
        range_test.chosen([], [])


def test_refused_with_folds():
    with pytest.raises(LorakitError, match="learning_rate='auto' and folds=3 contradict"):
        Run(data="x", learning_rate="auto", folds=3)
