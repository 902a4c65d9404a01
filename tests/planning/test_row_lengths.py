"""Memory is planned for the rows that are there, and rows are no longer than the model has positions."""

import json

import pytest
from helpers import encoders

import lorakit
from lorakit.planning.setup import setup


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    lines = [{"text": f"water {i} " * n, "label": n % 2} for i, n in enumerate([1, 2, 3, 60] * 20)]
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_default_length_is_no_more_than_the_models_positions(labelled, tmp_path):
    """64 positions; RoBERTa's first two belong to padding, which its tokenizer's 62 says."""
    for kind, positions in (("bert", 64), ("roberta", 62)):
        model = encoders.saved(kind, tmp_path / kind)
        run = lorakit.Run(
            model=model, data=labelled, task="classify_text", output_dir=str(tmp_path)
        )
        plan = setup(run)
        assert plan.settings.max_length == positions
        assert plan.choices["max_length"].reason == f"{model} has {positions} positions"
        assert max(plan.prepared.rows["train"].lengths) == positions
        assert max(setup(run.with_(max_length=32)).prepared.rows["train"].lengths) == 32


def test_memory_is_planned_for_the_longest_row(base, rows_file, tmp_path):
    run = lorakit.Run(model=base, data=rows_file, output_dir=str(tmp_path), precision="fp32")
    wide, narrow = setup(run.with_(max_length=512)), setup(run.with_(max_length=128))
    assert wide.settings.max_length == 512 and wide.prepared.longest < 128
    assert wide.peak_memory == narrow.peak_memory


def test_what_is_recorded_holds_a_row_of_full_length(base, rows_file, tmp_path):
    run = lorakit.Run(model=base, data=rows_file, output_dir=str(tmp_path), max_length=512)
    assert setup(run).settings.micro_batch_tokens >= 512
