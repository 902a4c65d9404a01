"""`--json`: what the commands print is what docs/json.md says."""

import json
import re

import jsonschema
import pytest
from helpers.paths import ROOT

from lorakit.cli import main

TEXT = (ROOT / "docs/json.md").read_text(encoding="utf-8")
SCHEMAS = dict(re.findall(r"^## (\w+)\n\n```json\n(.*?)\n```", TEXT, re.S | re.M))


def printed(capsys, command, *arguments):
    """The object that a command printed, checked against its schema."""
    code = main([command, *map(str, arguments), "--json"])
    content = json.loads(capsys.readouterr().out)
    jsonschema.validate(content, json.loads(SCHEMAS[command]))
    return code, content


def test_every_command_with_json_is_documented():
    assert set(SCHEMAS) == {"doctor", "check", "plan", "evaluate", "compare"}


def test_doctor(capsys):
    code, content = printed(capsys, "doctor")
    assert code == (1 if content["problems"] else 0)


def test_check(capsys, rows_file, tmp_path):
    assert printed(capsys, "check", rows_file)[0] == 0
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n')
    assert main(["check", str(bad), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"message", "setting", "value", "where", "cure"} and error["message"]


def test_plan(capsys, run, tmp_path):
    run.write(tmp_path / "run.yaml")
    code, content = printed(capsys, "plan", tmp_path / "run.yaml")
    assert code == 0 and content["updates"] == 12
    assert content["choices"]["engine"]["reason"]
    assert content["memory_bytes"]["total"] > 0


@pytest.mark.usefixtures("quick")
def test_evaluate_and_compare(capsys, copied, finished):
    code, content = printed(capsys, "evaluate", copied.path)
    assert code == 0 and content["scores"]["loss"]["rows"] > 0
    code, content = printed(capsys, "compare", finished.path, copied.path)
    assert code == 0 and len(content["runs"]) == 2
    assert content["differences"][0]["loss"]["difference"] == pytest.approx(0, abs=1e-6)
