"""What did it forget? Questions are scored by exact rules, and what is said has intervals."""

import pytest

from lorakit.results.evidence import forgotten

SUITE = forgotten.suite()


def test_the_suite_has_enough_questions_of_every_kind():
    kinds = [item["kind"] for item in SUITE]
    assert len(SUITE) >= 200 and len({item["prompt"] for item in SUITE}) == len(SUITE)
    assert {*kinds} == {
        "facts", "arithmetic", "instructions", "nonsense", "formatting", "German", "Spanish",
    }  # fmt: skip
    assert all(kinds.count(kind) >= 16 for kind in kinds)
    for item in SUITE:
        assert forgotten.right("", item["rule"], item["value"]) is False
        if item["rule"] == "contains":
            assert forgotten.right(f"It is {item['value'][0]}.", "contains", item["value"])


@pytest.mark.parametrize(
    ("answer", "rule", "value", "expected"),
    [
        ("The capital is PARIS.", "contains", ["Paris"], True),
        ("Parisian", "contains", ["Paris"], False),
        ("3 + 4 = 7", "number", 7, True),
        ("7 is 3 + 4", "number", 7, False),
        ("1,204", "number", 1204, True),
        ('```json\n{"first": "red"}\n```', "json", {"first": "red"}, True),
        ("{first: red}", "json", {"first": "red"}, False),
        ("- a\n- b", "matches", r"- a\n- b", True),
        ("so: - a", "matches", r"- a", False),
    ],
)
def test_rules(answer, rule, value, expected):
    assert forgotten.right(answer, rule, value) is expected


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="no rule 'likes'"):
        forgotten.right("", "likes", 1)


def told(before, after, n=200):
    return forgotten.said(
        ["facts", "arithmetic"] * (n // 2),
        [i < before for i in range(n)],
        [i < after for i in range(n)],
    )


def test_a_loss_is_called_forgetting_and_chance_is_not():
    assert told(120, 60).headline.startswith("It forgot: -30 points (95 % interval -3")
    assert told(120, 118).headline.startswith("No forgetting is shown: -1 points")
    assert told(60, 120).headline.startswith("No forgetting is shown; it even")
    assert told(120, 60).table[1][:2] == ["facts", "100"]


def test_too_little_is_said():
    assert "20 questions are too few; at least 50 are needed" in told(10, 5, 20).headline
    weak = told(4, 0)
    assert (
        not weak.told and "the base answers 4 of 200 (2 %, 95 % interval 1 to 5 %)" in weak.headline
    )
