"""AGENTS.md: every command and the Python block in it work, in the order in which they stand."""

import contextlib
import io
import json
import re
import shlex

from helpers.paths import ROOT

from lorakit.cli import main

TEXT = (ROOT / "AGENTS.md").read_text(encoding="utf-8")


def test_the_commands_of_agents_md_work(tmp_path, monkeypatch, capsys, quick, here):
    monkeypatch.chdir(tmp_path)
    (settings,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    (tmp_path / "run.yaml").write_text(settings)
    commands = [line.strip() for line in re.findall(r"^    (lorakit .*)$", TEXT, re.M)]
    assert len(commands) == 9
    for command in commands:
        code, said = main(shlex.split(command)[1:]), capsys.readouterr().out
        assert code == 0 or command == "lorakit doctor --json", command
        if command.endswith("--json"):
            assert isinstance(json.loads(said), dict), command
    assert json.loads((tmp_path / "outputs/agent/record.json").read_text())["status"] == "done"
    (python,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(python, {})
    assert out.getvalue().count("[") == 1


def test_llms_txt_leads_to_files_that_are_there():
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    files = re.findall(r"\]\((.*?)\)", text)
    assert files and all((ROOT / file).is_file() for file in files)
