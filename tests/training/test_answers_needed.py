"""Answers are generated where a metric looks at them, and nowhere else."""

import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.results import evaluate
from lorakit.runs.folder import read_lines


@pytest.mark.parametrize(
    ("metrics", "needed"),
    [
        ({"loss": {}, "perplexity": {}}, False),
        ({"loss": {}, "token_accuracy": {}}, False),
        ({"loss": {}, "exact_match": {}}, True),
        ({"loss": {}, "chrf": {}}, True),
    ],
)
def test_which_metrics_need_answers(metrics, needed):
    assert evaluate.needs_answers(metrics) is needed


def test_losses_alone_generate_nothing(base, rows_file, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate, "generate", lambda *a, **k: pytest.fail("an answer was generated")
    )
    folder = lorakit.finetune(tiny_run(base, rows_file, tmp_path, metrics=["loss"], max_updates=3))
    assert folder.record["status"] == "done" and set(folder.scores) == {"loss", "perplexity"}
    lines = read_lines(folder / "answers.jsonl")
    assert lines and all(line["before"] is None and line["after"] is None for line in lines)
    assert (folder / "report.html").is_file()
