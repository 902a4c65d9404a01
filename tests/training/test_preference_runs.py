"""Whole preference runs: a known rule is learnt, a shuffled control is not, an interrupted run ends bit for bit alike."""

from __future__ import annotations

import json
import math
import signal

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.processes import child
from safetensors.numpy import load_file

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.engines.torch.engine import TorchEngine
from lorakit.results.evaluate import Outcome
from lorakit.runs.folder import RunFolder
from lorakit.tasks import rows

PAIRS = ROOT / "data/preferences.jsonl"


@pytest.fixture
def run(base, tmp_path):
    return lorakit.Run(
        name="pairs", model=base, data=str(PAIRS), output_dir=str(tmp_path), max_rows=150, max_length=400,
        max_updates=24, learning_rate=2e-3, test_fraction=0.3, max_new_tokens=2, precision="fp32",
        validate_every=12, checkpoint_every=3, quantization="none",
    )  # fmt: skip


def adapter(folder):
    return load_file(folder.path / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_known_rule_is_learnt_and_its_control_is_not(run, quick):
    folder = lorakit.finetune(run)
    score = json.loads((folder / "scores.json").read_text())
    ranked, margin = score["preference_accuracy"], score["reward_margin"]
    assert (ranked["before"], margin["before"]) == (0.5, 0.0) and ranked["after"] >= 0.9
    assert ranked["before"] + ranked["interval"][0] > 0.5 and margin["interval"][0] > 0
    assert score["loss"]["before"] == pytest.approx(math.log(2), abs=1e-9)
    assert {"chosen_loss", "loss"} <= score.keys() and "perplexity" not in score
    first = folder.history()[0][0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["target_tokens"] == 8
    assert "training pairs already" in folder.record["choices"]["reference"][1]
    assert Outcome.read(folder.outcome("after")).pairs.shape == (ranked["rows"], 4)
    control = lorakit.finetune(run.with_(name="control", shuffle_answers=True))
    ranked = json.loads((control / "scores.json").read_text())["preference_accuracy"]
    assert abs(ranked["after"] - 0.5) < 0.35 and ranked["after"] < 0.9


@pytest.mark.slow
def test_marked_answers_teach_the_same_rule(run, quick, tmp_path):
    """KTO: each answer of a pair alone; desirable ones gain, undesirable ones lose."""
    lines = []
    for i, line in enumerate(PAIRS.read_text(encoding="utf-8").splitlines()):
        pair = json.loads(line)
        side = ("chosen", "rejected")[i % 2]
        lines.append({"prompt": pair["prompt"], "completion": pair[side], "label": i % 2 == 0})
    (tmp_path / "marked.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    folder = lorakit.finetune(run.with_(data=str(tmp_path / "marked.jsonl")))
    assert folder.record["data"]["task"] == "unpaired" and folder.record["status"] == "done"
    score = json.loads((folder / "scores.json").read_text())
    ranked, margin = score["preference_accuracy"], score["reward_margin"]
    assert (ranked["before"], margin["before"]) == (0.5, 0.0) and ranked["after"] >= 0.9
    assert score["loss"]["before"] == pytest.approx(0.5, abs=1e-9) and margin["interval"][0] > 0
    assert "mismatched" in folder.record["choices"]["reference"][1]


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_alike(run, quick, monkeypatch):
    run = run.with_(max_updates=8, dropout=0.1)
    whole = lorakit.finetune(run.with_(name="whole"))
    plain, calls = TorchEngine.update, []

    def cut(self, *args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(TorchEngine, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        lorakit.finetune(run)
    known = np.load(run.folder / "rows" / rows.REFERENCE)
    monkeypatch.setattr(TorchEngine, "score_documents", None)  # the base is not asked again
    folder = lorakit.finetune(run)
    assert folder.record["status"] == "done"
    one, two = adapter(whole), adapter(folder)
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    curves = [[u["loss"] for u in f.history()[0]] for f in (whole, folder)]
    assert curves[0] == curves[1] and len(curves[0]) == 8
    assert set(known.files) == {"train", "validation", "test"}


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_alike(processes, run):
    run, ended = run.with_(max_updates=8, dropout=0.1), []
    for name, kills in (
        ("whole", []),
        ("killed", [("lorakit.engines.torch.engine:TorchEngine.update", 6)]),
    ):
        one = run.with_(name=name)
        for kill in [*kills, ()]:
            process = processes.Process(target=child, args=(one.given(), *kill))
            process.start()
            process.join(300)
            assert process.exitcode == (-signal.SIGKILL if kill else 0)
        ended.append(RunFolder(one.folder))
    one, two = map(adapter, ended)
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    curves = [[u["loss"] for u in folder.history()[0]] for folder in ended]
    assert curves[0] == curves[1] and len(curves[0]) == 8


def test_the_published_rate_is_taken_and_said(run):
    from lorakit.planning.setup import setup

    given = {k: v for k, v in run.given().items() if k != "learning_rate"}
    plan = setup(lorakit.Run(**given))
    assert (
        plan.settings.learning_rate == 5e-6 and "published" in plan.choices["learning_rate"].reason
    )
    plan = setup(lorakit.Run(**given, objective={"orpo": {"beta": 0.2}}))
    assert plan.settings.learning_rate == 8e-6


def test_an_engine_that_has_no_preferences_refuses_by_name(run):
    from lorakit import engines
    from lorakit.planning import choose

    asked = run.with_(task="preferences")
    assert choose.unserved(engines.get("unsloth"), asked) == "it does not serve preferences"
    assert choose.unserved(engines.get("mlx"), asked) == ""


def test_bad_pairs_are_left_out_by_file_and_row(run, quick, tmp_path):
    lines = PAIRS.read_text(encoding="utf-8").splitlines()[:40]
    good = json.loads(lines[0])
    lines[3] = json.dumps({**good, "rejected": good["chosen"]})
    lines[5] = json.dumps({**good, "chosen": " "})
    (tmp_path / "some.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepared = lorakit.prepare(run.with_(data=str(tmp_path / "some.jsonl")))
    assert [(r.row, r.reason) for r in prepared.report.rejected] == [
        (4, "'chosen' and 'rejected' are equal: there is nothing to prefer"),
        (6, "'chosen' is empty"),
    ]
    checked = lorakit.check(run.with_(data=str(tmp_path / "some.jsonl")))
    assert {r.row for r in checked.report.rejected} == {4, 6}


def test_a_file_without_a_usable_pair_is_refused(run, tmp_path):
    (tmp_path / "none.jsonl").write_text(
        json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"})
    )
    with pytest.raises(LorakitError, match="equal"):
        lorakit.prepare(run.with_(data=str(tmp_path / "none.jsonl")))
    assert not RunFolder(run.folder).path.exists()
