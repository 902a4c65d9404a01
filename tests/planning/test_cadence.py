"""How often to validate: as often as its share of the time allows."""

import pytest

from lorakit.planning import choose
from lorakit.run import Run


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        (100_000, 2_000, 10),  # ten validations of 2,000/3 are 6.7 % of the time
        (100_000, 10_000, 33),  # three of 3,333
        (160, 64, 100),  # as many validation rows as this are looked at once, at the end
        (0, 0, 10),
    ],
)
def test_validation_takes_a_tenth_of_the_time_at_most(training, validation, expected):
    run, chosen = choose.cadence(Run(data="-"), 100, training, validation)
    assert run.validate_every == chosen["validate_every"].value == expected


def test_what_was_asked_for_stays():
    run, chosen = choose.cadence(Run(data="-", validate_every=7), 100, 160, 64)
    assert run.validate_every == 7 and "validate_every" not in chosen


def test_early_stopping_keeps_its_ten_looks():
    run, _ = choose.cadence(Run(data="-", early_stopping=2), 100, 160, 64)
    assert run.validate_every == 10
