"""A mistake in what a run names is said before torch is imported."""

import json
import subprocess
import sys

import pytest
import yaml

from lorakit.machine.hardware import child_environment

CHILD = (
    "import sys; from lorakit.cli import main; code = main(sys.argv[1:]); "
    "print(code, [m for m in ('torch', 'transformers', 'datasets', 'peft') if m in sys.modules])"
)


def said(*command):
    """(exit code and frameworks that were imported, what was said)."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, command)],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("train", {"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("plan", {"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("train", {"model": "no model"}, "no model"),
        ("plan", {"model": "no model"}, "no model"),
        ("train", {"engine": "warp"}, "warp"),
        ("train", {"task": "sing"}, "sing"),
        ("train", {"metrics": ["applause"]}, "applause"),
        ("train", {"learning_rate": "fast"}, "learning_rate"),
        ("train", {"lerning_rate": 1e-3}, "learning_rate"),
    ],
)
def test_a_mistake_is_found_before_torch_is_imported(tmp_path, rows_file, command, changes, words):
    settings = tmp_path / "run.yaml"
    content = {"data": rows_file, "output_dir": str(tmp_path / "out")} | changes
    settings.write_text(yaml.safe_dump(content))
    out, message = said(command, settings)
    assert out == "1 []" and words in message


def test_another_run_in_the_folder_is_found_before_torch_is_imported(tmp_path, rows_file):
    settings = {"data": rows_file, "output_dir": str(tmp_path / "out"), "rank": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    folder = tmp_path / "out/run"
    folder.mkdir(parents=True)
    known = {
        "status": "done",
        "settings": settings | {"rank": 8},
        "data": {"sha256": "", "file": ""},
        "updates_planned": 1,
    }
    (folder / "record.json").write_text(json.dumps(known))
    out, message = said("train", tmp_path / "run.yaml")
    assert out == "1 []" and "rank: 8 there, 4 now" in message
