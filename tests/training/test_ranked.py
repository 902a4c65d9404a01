"""`lorakit check --ranked`: which pairs the base ranks right already."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorakit.cli import main
from lorakit.common.errors import LorakitError
from lorakit.run import Run
from lorakit.training import ranked


@pytest.fixture
def run(base, tmp_path):
    lines = [{"prompt": f"Q {i}", "chosen": "ja"[: 1 + i % 2], "rejected": f"no {i}"} for i in range(40)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return Run(
        model=base, data=str(tmp_path / "pairs.jsonl"), output_dir=str(tmp_path), max_length=200,
        engine="torch", precision="fp32", quantization="none",
    )  # fmt: skip


def test_the_pairs_are_named(run, tmp_path, capsys):
    run.write(tmp_path / "run.yaml")
    assert main(["check", str(tmp_path / "run.yaml"), "--ranked", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    (finding,) = (f for f in found if f["check"] == "ranked")
    # of random weights a shorter answer is the more probable one
    assert finding["level"] == "warning" and "100% of" in finding["text"]
    assert finding["rows"][0].startswith("pairs.jsonl:") and finding["count"] >= 20


@pytest.mark.parametrize(("chosen", "level", "count"), [(-1.0, "warning", 2), (-9.0, "note", 0)])
def test_what_is_right(run, monkeypatch, chosen, level, count):
    answers = np.tile([chosen, -5.0], (2, 1))
    monkeypatch.setattr(ranked, "logps", lambda engine, rows, run: answers[: len(rows)])
    finding = ranked.already(run, most=2)
    assert (finding.level, finding.count) == (level, count)
    assert f"ranks {50 * count}% of 2 pairs right already" in finding.text


def test_rows_without_pairs_are_refused(base, rows_file, tmp_path):
    with pytest.raises(LorakitError, match="no pairs to rank") as error:
        ranked.already(Run(model=base, data=rows_file, output_dir=str(tmp_path), engine="torch"))
    assert "--ranked" in error.value.cure
