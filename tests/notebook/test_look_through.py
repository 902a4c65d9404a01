"""The table of suspicious answers in a notebook and in the studio: each decision is kept, a cleaned file is written."""

import json
import shutil

import pytest

pytest.importorskip("ipyvuetify")
from helpers.runs import tiny_run

from lorakit.notebook.look_through import LookThrough
from lorakit.notebook.studio.app import Studio
from lorakit.results.evidence import suspicious
from lorakit.runs.folder import read_lines, write_json


@pytest.fixture
def ranked(copied):
    """A run with a table of three suspicious answers."""
    lines = read_lines(copied.answers, "prompt", "reference", "where")[:3]
    rows = [["", r["where"], r["prompt"], r["reference"], "own", "1.000"] for r in lines]
    suspicious._write(copied, rows)
    return copied


def test_decisions_are_written_at_once_and_a_cleaned_file_is_made(ranked):
    done = []
    page = LookThrough(ranked.path, cleaned=done.append)
    assert page.total == 3 and [r["decision"] for r in page.rows] == ["keep"] * 3
    assert repr(page).startswith("3 rows to look through\n") and "the model: 'own'" in repr(page)
    page.vue_decide({"row": 0, "decision": "drop"})
    page.vue_decide({"row": 1, "decision": "fix", "answer": "better"})
    page.vue_decide({"row": 2, "decision": "burn"})
    again = LookThrough(ranked.path)
    assert [(r["decision"], r["answer"]) for r in again.rows[:2]] == [
        ("drop", page.rows[0]["answer"]),
        ("fix", "better"),
    ]
    assert suspicious.decisions(ranked.path)[page.rows[2]["row"]][0] == "keep"
    page.vue_clean(None)
    page.vue_clean(None)
    assert [p.name for p in done] == ["cleaned.jsonl", "cleaned-2.jsonl"]
    assert page.message == "cleaned-2.jsonl is written: 78 keep, 1 fix, 1 drop"
    rows = [json.loads(line) for line in done[0].read_text().splitlines()]
    assert len(rows) == 79 and sum(r["messages"][-1]["content"] == "better" for r in rows) == 1


def test_rows_are_turned_over_a_page_at_a_time(ranked):
    suspicious._write(ranked, [["", f"f:{i}", "q", "a", "b", "1"] for i in range(45)])
    page = LookThrough(ranked.path)
    page.vue_turn(40)
    assert [r["row"] for r in page.rows] == [f"f:{i}" for i in range(40, 45)]
    page.vue_turn(-20)
    assert page.start == 0 and len(page.rows) == 20


def test_the_studio_makes_the_cleaned_rows_its_next_data(
    ranked, base, rows_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "outputs"
    shutil.copytree(ranked.path, home / "run")
    (home / "run/folds").mkdir()
    write_json(home / "run/asked.json", {})
    run = tiny_run(base, rows_file, home)
    page = Studio(run, [base, str(rows_file).rpartition("/")[0]])
    page.later = lambda words, work: work()
    page.vue_go(6)
    assert page.result["folded"] and page.suspects is None
    page.vue_look_through(None)
    page.suspects.vue_decide({"row": 0, "decision": "drop"})
    page.suspects.vue_clean(None)
    assert page.desk.run.data.endswith("run-cleaned.jsonl")
    assert "the cleaned rows are the data of the next run" in str(page.table)
