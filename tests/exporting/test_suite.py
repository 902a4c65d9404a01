"""Suites of lm-evaluation-harness: what is missing is said, and a local task runs on base and tuned model."""

import json

import pytest

from lorakit.common.errors import LorakitError
from lorakit.exporting import suite as suites


def test_a_missing_harness_is_said(copied, monkeypatch):
    from lorakit.machine import packages

    monkeypatch.setattr(packages, "installed", lambda name: None)
    with pytest.raises(LorakitError) as raised:
        suites.suite(copied.path, "hellaswag")
    assert "a suite needs lm-eval: lm-eval is not installed" in str(raised.value)
    assert "pip install" in raised.value.cure and "lm-eval" in raised.value.cure


def test_metrics_that_are_means_are_paired_by_question():
    before = {
        "t": [
            {"doc_id": i, "filter": "none", "metrics": ["acc", "ppl"], "acc": 0.0, "ppl": (1, 2)}
            for i in range(9)
        ]
    }
    after = {"t": [{**line, "acc": float(line["doc_id"] < 6)} for line in reversed(before["t"])]}
    ((name, entry),) = suites._entries(before, after)
    assert name == "t acc" and entry["rows"] == 9
    assert (entry["before"], entry["after"]) == (0, pytest.approx(2 / 3))
    assert 0 < entry["interval"][0] < 2 / 3 < entry["interval"][1] <= 1


@pytest.fixture
def local_task(tmp_path):
    """A task of one's own: yes or no, in files."""
    rows = [{"question": f"{c}bcde abcde bcdef cdefg?", "label": int(c >= "e")} for c in "abcdefgh"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "local.yaml"
    path.write_text(
        f"task: local_yes\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "output_type: multiple_choice\ntarget_delimiter: ''\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: ['yes go', 'no']\ndoc_to_target: label\nmetric_list:\n  - metric: acc\n"
    )
    return path


def test_a_local_task_runs_on_base_and_tuned_model(copied, local_task, here):
    pytest.importorskip("lm_eval", reason="the extra 'suite' is not installed")
    target, lines = suites.suite(copied.path, str(local_task))
    entry = json.loads(target.read_text())["local_yes acc"]
    assert target.name == "scores-suite-local.json" and entry["rows"] == 8
    assert 0 <= entry["before"] <= entry["after"] <= 1
    assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
    assert lines[0].startswith("local_yes acc: ") and "95 % interval" in lines[0]
    with pytest.raises(LorakitError) as raised:
        suites.suite(copied.path, "hellaswak")
    assert raised.value.setting == "--suite" and "hellaswag" in str(raised.value)
