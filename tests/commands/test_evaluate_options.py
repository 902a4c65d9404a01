"""`lorakit evaluate`: an option that another way of scoring would use is refused before the run is opened."""

import pytest

from lorakit.cli import main


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "5"], "--limit has no effect here"),
        (["--suite", "x", "--limit", "0"], "--limit is a number of rows or questions from 1"),
        (["--suite", "x", "--metrics", "bleu"], "--metrics has no effect here"),
        (["--judge-model", "m"], "--judge-model has no effect here"),
        (["--data", "a.jsonl", "--judge-prices", "1", "2"], "--judge-prices has no effect here"),
        (["--data", "a.jsonl", "--suite", "x"], "--data and --suite do not go together"),
    ],
)
def test_options_without_effect(capsys, options, words):
    assert main(["evaluate", "no-such-run", *options]) != 0
    assert words in capsys.readouterr().err
