"""What YAML 1.1 would read as something else, and keys that stand twice."""

import math

import pytest
import yaml

import lorakit
from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError
from lorakit.notebook.execute import value_of
from lorakit.run import Run


@pytest.mark.parametrize(
    "text, value",
    [
        ("16", 16), ("-3", -3), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("1e-4", 1e-4), ("2E3", 2000.0),
        ("1.5e-3", 0.0015), ("010", "010"), ("10:24", "10:24"), ("1_000", "1_000"), ("0x1f", "0x1f"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("true", True), ("False", False),
        ("null", None), ("~", None), ("", None), ("2024-01-02", "2024-01-02"), ("1.2.3", "1.2.3"),
        ("'16'", "16"), ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}), ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {p: 1}\nb:\n  <<: *x\n  q: 2", {"a": {"p": 1}, "b": {"p": 1, "q": 2}}),
        (".inf", math.inf),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = strict_yaml.load(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x:\n  a: 1\n  a: 1\n", "{a: 1, a: 2}"])
def test_a_key_that_stands_twice_is_refused_with_its_lines(text):
    with pytest.raises(yaml.YAMLError, match="the key 'a' stands in line"):
        strict_yaml.load(text)


def test_a_setting_that_stands_twice_names_file_and_lines(tmp_path):
    (tmp_path / "r.yaml").write_text("data: d\nrank: 4\nrank: 8\n")
    with pytest.raises(LorakitError, match=r"r\.yaml.*'rank' stands in line 2 and in line 3"):
        Run.read(tmp_path / "r.yaml")


@pytest.mark.parametrize("value", [True, False, "010", " 16", "1_6", "10:24"])
def test_a_number_is_a_number(value):
    with pytest.raises(LorakitError) as refused:
        Run(data="d", rank=value)
    assert (refused.value.setting, refused.value.value) == ("rank", value)


def test_numbers_as_text_and_truth_values_of_mixed_settings_stay():
    run = Run(data="d", rank="16", learning_rate="1e-4", gradient_checkpointing=True, packing=False)
    assert (run.rank, run.learning_rate, run.gradient_checkpointing) == (16, 1e-4, True)


def test_one_name_stands_for_a_list_of_one():
    run = Run(data="d", log_to="wandb", metrics="f1")
    assert (run.log_to, run.metrics) == (["wandb"], ["f1"])


@pytest.mark.parametrize(
    "name, value", [("rank", 8), ("alpha", 64), ("dropout", 0.1), ("target_modules", ["q"])]
)
def test_what_shapes_an_adapter_is_refused_without_one(name, value):
    with pytest.raises(LorakitError, match=f"method='full' and {name}="):
        Run(data="d", method="full", **{name: value})
    assert lorakit.Run(data="d", **{name: value}).with_(method="full").method == "full"


@pytest.mark.parametrize(
    "text, default, value",
    [
        ("007", "'a name'", "007"), ("1e5", "'tiny'", "1e5"), ("true", "'x'", "true"),
        ("8", "16", 8), ("1e-4", "0.1", 1e-4), ("auto", "16", "auto"), ("null", "16", None),
        ("true", "False", True), ("[1, 2]", "None", [1, 2]), ("8", "None", 8), ("8", "'auto'", 8),
    ],
)  # fmt: skip
def test_a_parameter_has_the_type_of_the_notebooks_own_value(text, default, value):
    found = value_of("p", text, default)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, default", [("true", "16"), ("many", "16"), ("8", "True"), ("yes", "False")]
)
def test_a_parameter_of_another_type_is_refused(text, default):
    with pytest.raises(LorakitError) as refused:
        value_of("rank", text, default)
    assert refused.value.setting == "rank" and text in refused.value.message


@pytest.mark.parametrize(
    "more", ["[{}]", "{{k: [{}]}}", "{{<<: [{}]}}"], ids=["lists", "mappings", "merged"]
)
def test_aliases_that_add_up_are_refused_before_they_are_written_out(more, tmp_path):
    lines = [
        "a0: &a0 {x: 1}",
        *(f"a{i}: &a{i} " + more.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, 10)),
    ]
    (tmp_path / "run.yaml").write_text("data: x\n" + "\n".join(lines))
    with pytest.raises(LorakitError, match="aliases add up to more than"):
        Run.read(tmp_path / "run.yaml")


def test_an_alias_in_itself_is_refused_and_an_ordinary_one_is_read():
    with pytest.raises(yaml.YAMLError, match="aliases add up"):
        strict_yaml.load("a: &a {b: *a}")
    assert strict_yaml.load("a: &a [1, 2]\nb: *a\nc: {<<: {d: 3}}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": 3},
    }
