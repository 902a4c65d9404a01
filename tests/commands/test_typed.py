"""What a person types first: a data file instead of settings, a misspelt name, five questions, a wrong setting."""

import builtins
import io
import json
import sys

import pytest
import yaml

from lorakit import cli
from lorakit.commands import COMMANDS, settings, terminal
from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import Card, Facts
from lorakit.models import catalogue
from lorakit.planning.unusual import unusual
from lorakit.run import Run


def typed(*words):
    return cli.parser().parse_args([str(w) for w in words])


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


def test_a_data_file_is_a_run_with_defaults(rows):
    run = settings.read(typed("train", rows, "--model", "tiny", "--set", "epochs=1"))
    assert run.given() == {"name": "my rows", "model": "tiny", "epochs": 1, "data": str(rows)}
    assert settings.read(typed("plan", rows)).data == str(rows)


def test_the_settings_that_were_used_are_written_and_found_again(rows):
    run = settings.read(typed("train", rows, "--model", "tiny"))
    one, path = settings.kept(run)
    assert (one.name, path.name) == ("my rows", "my rows.yaml")
    assert Run.read(path) == run
    assert settings.kept(run) == (one, path)  # the same settings: the same run, resumed
    other, beside = settings.kept(run.with_(epochs=1))
    assert (other.name, beside.name) == ("my rows-2", "my rows-2.yaml")
    assert settings.read(typed("train", beside)).given() == other.given()


def test_a_json_file_is_data_unless_it_holds_settings(tmp_path):
    data, run = tmp_path / "rows.json", tmp_path / "asked.json"
    data.write_text(json.dumps([{"prompt": "a", "completion": "b"}]))
    run.write_text(json.dumps({"data": str(data), "name": "x"}))
    assert not settings.is_settings(str(data)) and settings.is_settings(str(run))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "my rosw.jsonl"], "did you mean 'my rows.jsonl'?"),
        (["check", "my row.jsonl"], "did you mean 'my rows.jsonl'?"),
        (["plan", "rnu.yaml"], "did you mean 'run.yaml'?; write one with: lorakit init"),
        (["train", "run.yaml"], "did you mean 'my rows.jsonl'?"),
    ],
)
def test_a_misspelt_file_is_named_before_anything_is_loaded(rows, words, hint, capsys):
    (rows.parent / "run.yaml").write_text("data: my rowz.jsonl\n")
    assert cli.main(words) == 1
    message = capsys.readouterr().err
    assert "no such file (looked from" in message and hint in message and "Traceback" not in message


@pytest.mark.parametrize("data", ["owner/name", "owner/name.v1", "rows.jsonl,more.jsonl"])
def test_a_hub_id_or_a_list_is_not_taken_for_a_missing_file(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings.present(data)


def test_five_questions_make_a_file_that_trains(rows, monkeypatch, capsys):
    answers = iter(["nowhere.csv", "my rows.jsonl", "", "tiny", "best", "quick", "20"])
    monkeypatch.setattr(builtins, "input", lambda question: next(answers))
    assert cli.main(["init", "new.yaml"]) == 0
    assert yaml.safe_load((rows.parent / "new.yaml").read_text()) == {
        "name": "my rows",
        "model": "tiny",
        "data": "my rows.jsonl",
        "epochs": 1,
        "test_fraction": 0.2,
    }
    assert "lorakit train new.yaml" in capsys.readouterr().out
    assert cli.main(["init", "new.yaml"]) == 1  # never over a file that is there


def test_questions_without_an_answer_end_with_a_message(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(["init"]) == 1 and "answers ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": 10}, "learning_rate=10 is 50,000 times the usual 0.0002 of lora"),
        ({"learning_rate": 1e-3, "method": "full"}, None),
        ({"learning_rate": 2e-3, "method": "full"}, "learning_rate=0.002 is 100 times the usual"),
        ({"learning_rate": 1e-9}, "the model will hardly change"),
        ({"learning_rate": 3e-3}, None),
        ({"dropout": 0.9}, "dropout=0.9 is unusual: most of the input is erased"),
        ({"epochs": 500}, "epochs=500 is unusual"),
        ({"alpha": 4000}, "alpha=4000 is 250 times the rank"),
        ({"test_fraction": 0}, "no row is kept for the test"),
        ({"max_length": 8}, "max_length=8 is unusual: most rows will be cut"),
        ({"global_batch_size": 64}, "global_batch_size=64 is more than the 40 training rows"),
        ({"max_updates": 3}, "3 updates in all are too few"),
        ({"max_updates": 900}, "passes over the 40 training rows 180 times"),
        ({}, None),
    ],
)
def test_a_setting_that_looks_like_a_mistake_is_named_before_training(given, said):
    warnings = unusual(Run(data="x.jsonl", **given), rows=40)
    assert not warnings if said is None else any(said in warning for warning in warnings)


def test_every_command_and_every_option_says_what_it_does():
    for one in COMMANDS:
        assert one.words[0].isupper() and one.words.endswith((".", "it."))
        for argument in one.arguments:
            assert argument.options.get("help"), (one.name, argument.names)
    lines = cli.overview().splitlines()
    order = [line.split()[0] for line in lines if line.startswith("  ") and "lorakit" not in line]
    assert order[:6] == ["doctor", "init", "settings", "check", "plan", "train"]
    assert sorted(order) == sorted(one.name for one in COMMANDS)


def test_examples_of_the_help_can_be_typed():
    import shlex

    for one in COMMANDS:
        for line in one.examples:
            program, *words = shlex.split(line, comments=True)
            assert program == "lorakit" and typed(*words).call is one.call


@pytest.mark.parametrize(
    ("environment", "terminal_there", "coloured"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_where_the_terminal_has_them(environment, terminal_there, coloured, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = type("Stream", (), {"isatty": lambda self: terminal_there})()
    assert terminal.colours(stream) is coloured
    assert terminal.coloured("x", "red", stream) == ("\033[31mx\033[0m" if coloured else "x")


def test_models_to_choose_from_say_whether_they_fit():
    t4 = Facts(cards=(Card("Tesla T4", 15_000_000_000, (7, 5)),), memory=13_000_000_000)
    cpu = Facts(memory=25_000_000_000)
    models = {m.name: m for m in catalogue.catalogue()}
    assert models["tiny"].purpose.startswith("a toy")
    assert models["llama-3.2-1b"].gated and not models["qwen3-4b"].gated
    assert models["qwen3-8b"].fits(t4) and not models["gpt-oss-20b"].fits(t4)
    assert (catalogue.recommended(t4).name, catalogue.recommended(cpu).name) == (
        "qwen3-4b",
        "smollm2-135m",
    )
    assert models["qwen3-0.6b"].size == "600 M" and models["qwen3-8b"].size == "8.2 B"


def test_a_missing_file_keeps_its_fields(tmp_path):
    with pytest.raises(LorakitError) as error:
        settings.present(str(tmp_path / "rows.csv"))
    assert error.value.where == str(tmp_path / "rows.csv") and error.value.cure is None


def test_what_rows_and_names_hold_does_not_command_a_terminal():
    """Titles, the clipboard and the cursor are left alone; colours and lines of progress pass."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    terminal.shielded(stream)
    print("a\x1b]0;title\x07b\x1b[2Jc\x9bd\x1b[1;31me\x1b[0m\r\x1b[K\tf", file=stream)
    assert stream.getvalue() == "a�]0;title�b�[2Jc�d\x1b[1;31me\x1b[0m\r\x1b[K\tf\n"
