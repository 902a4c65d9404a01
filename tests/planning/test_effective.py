"""Settings that a run would ignore are refused once its rows, its task and every `auto` are known."""

import pytest

from lorakit.common.errors import LorakitError
from lorakit.planning.effective import refuse_ineffective
from lorakit.run import Run

SETS = ("train", "validation", "test")


def resolved(**settings):
    return Run(**{"data": "-", "task": "chat", "validate_every": 10, **settings})


@pytest.mark.parametrize(
    ("settings", "updates", "sets", "name", "cure"),
    [
        ({"early_stopping": 20}, 100, SETS, "early_stopping", "at most 8 can act here"),
        ({"early_stopping": 9}, 100, SETS, "early_stopping", "at most 8 can act here"),
        ({"early_stopping": 3, "validate_every": 1000}, 100, SETS, "early_stopping", "leave it out"),
        ({"early_stopping": 2}, 100, ("train",), "early_stopping", "leave it out"),
        ({"samples": 3}, 100, ("train", "test"), "samples", "leave it out"),
        ({"samples": 3, "validate_every": 0}, 100, SETS, "samples", "leave it out"),
        ({"samples": 3, "task": "classify_text"}, 100, SETS, "samples", "leave it out"),
        ({"language": "de"}, 100, SETS, "language", "leave it out"),
        ({"question": "Which leaf is this?"}, 100, SETS, "question", "leave it out"),
        ({"reasoning": "drop", "task": "text"}, 100, SETS, "reasoning", "leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_take_effect_is_refused(settings, updates, sets, name, cure):
    with pytest.raises(LorakitError) as found:
        refuse_ineffective(resolved(**settings), updates, sets)
    assert (found.value.setting, found.value.value) == (name, settings[name])
    assert cure in found.value.cure


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({}, 1),
        ({"early_stopping": 8}, 100),  # ends after validation 9 of 10 at the earliest
        ({"early_stopping": 1, "validate_every": 1}, 3),
        ({"samples": 3}, 100),
        ({"reasoning": "drop"}, 100),
        ({"language": "de", "task": "transcribe"}, 100),
        ({"augment": False}, 100),  # nothing is asked for
    ],
)
def test_what_can_is_taken(settings, updates):
    refuse_ineffective(resolved(**settings), updates, SETS)
