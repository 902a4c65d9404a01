"""Whatever a name, a label or an answer holds, the report is written, shows it, and runs none of it."""

import json
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest

from lorakit.common.text import label, markdown, printable
from lorakit.results import evaluate, plots, report
from lorakit.results.evaluate import Outcome
from lorakit.runs.folder import Folder, write_json, write_lines

HOSTILE = {
    "mathematics": r"costs $5 and $\frac{1}{$ more \$",
    "html": '<b>bold</b><script>alert(1)</script> & "quotes" {{ 7*191 }} {% raw %}',
    "control": "bell\x07 null\x00 escape\x1b[31m and a lone \ud800",
    "reordered": "\u202egnp.exe",
    "long": "x" * 200,
    "lines": "one\ntwo\r\nthree | four",
    "scripts": "日本語 عربى 🚒",
    "empty": "",
}
METRICS = {"loss": {}, "exact_match": {}, "chrf": {}}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.words = [], ""

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)

    def handle_data(self, data):
        self.words += data


def written(folder, text, rows=24, after=None, task="chat"):
    """The report of a run whose every text is this one."""
    folder.mkdir(parents=True)
    references = [text if i % 2 else f"other {text}" for i in range(rows)]
    afters = after or references
    sums = np.array([[5.0 + i % 3, 5, 3] for i in range(rows)])
    before = Outcome(sums, [text] * rows)
    scores = evaluate.scores(METRICS, before, Outcome(sums / 2, afters), references, references)
    answers = [
        {"prompt": text, "reference": r, "before": text, "after": a}
        for r, a in zip(references, afters, strict=True)
    ]
    history = [{"update": u, "loss": 3 / u} for u in range(1, 9)]
    record = {
        "status": "done",
        "model": text,
        "data": {"task": task, "lines": [text], "file": text},
        "metrics": METRICS,
        "choices": {"engine": [text, text]},
        "proof": {"said": text},
        "error": text,
        "beside": {"title": text, "rows": [[text, text, text]], "note": text},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (folder / "history.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return report.write(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_breaks_a_report(kind, tmp_path):
    text = HOSTILE[kind]
    page = written(tmp_path / "run", text).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not {"script", "b"} & set(tags.seen) and "1337" not in tags.words
    assert printable(text) in tags.words
    assert "\x00" not in page and "\x1b" not in page and "\u202e" not in page
    lines = (tmp_path / "run" / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} <= {4, 5, 7}
    assert not any("<script" in line for line in lines)


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_class_breaks_a_picture(kind):
    text = HOSTILE[kind]
    answers = [{"reference": c, "before": text, "after": c} for c in (text, "b") for _ in range(9)]
    scores = {
        f"{kind} {text}"[:200]: {
            "before": 0.1,
            "after": 0.4,
            "difference": 0.3,
            "interval": [0.2, 0.4],
            "rows": 9,
            "higher_is_better": True,
        }
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for colours in (plots.LIGHT, plots.DARK):
            for draw in (
                lambda c: plots.confusion(answers, labels=True, colours=c),
                lambda c: plots.improvements(scores, c),
            ):
                assert plots.png(draw, colours)[:4] == b"\x89PNG"


def test_wrong_answers_come_first_and_are_marked(tmp_path):
    after = [
        "wrong" if i in (7, 11, 20) else ("same" if i % 2 else "other same") for i in range(24)
    ]
    written(tmp_path / "run", "same", after=after)
    answers, note = report.some_answers(report.Folder.of(tmp_path / "run"))
    assert note == "3 of 24 test answers are wrong; those come first."
    length = report.facts(report.Folder.of(tmp_path / "run"))["mean characters of an answer"]
    assert length == "4.0 before, 6.9 after, 7.0 expected"
    assert [a["after_mark"] for a in answers] == ["wrong"] * 3 + ["right"] * 9
    # Two of them were right before: what got worse stands first.
    assert [a["before_mark"] for a in answers[:3]] == ["right", "right", "wrong"]


def test_answers_that_never_match_exactly_are_marked_by_their_likeness(tmp_path):
    after = [f"a sentence much like {i}" for i in range(24)]
    written(tmp_path / "run", "a sentence much like it", after=after)
    report_of = report.Folder.of(tmp_path / "run")
    scores = report_of.scores
    assert (scores["exact_match"]["before"], scores["exact_match"]["after"]) == (0.5, 0)
    metric, values = report.marks(
        [{"reference": "abc def", "before": "xyz", "after": "abc def"}],
        {"chrf": scores["chrf"], "loss": scores["loss"]},
        {"chrf": {}},
    )
    assert metric == "chrf" and values == [(0.0, 100.0)]


@pytest.mark.parametrize("metric", ["preference_accuracy", "roc_auc", "token_accuracy"])
def test_answers_are_marked_only_by_metrics_of_answers(metric):
    answers = [{"reference": "abc", "before": "x", "after": "abc"}]
    entry = {"before": 0.5, "after": 1.0, "difference": 0.5}
    assert report.marks(answers, {metric: entry}, {metric: {}}) == ("", [])


def test_a_loss_that_is_not_finite_leaves_the_curve_whole():
    assert plots.smooth([2.0, float("nan"), 4.0], 2)[::2] == pytest.approx([2.0, 10 / 3])
    assert plots.smooth([3.0] * 4 + [float("inf")])[:4] == [3.0] * 4


def test_a_short_run_is_hardly_smoothed_so_that_its_curve_does_not_lag():
    falling = [10.0 - u for u in range(10)]
    assert plots.smooth(falling) == falling
    assert plots.span(40) == 2 and plots.span(1000) == 10 and plots.span(100, gap=10) == 1


def test_labels_are_one_printable_line():
    assert label("a\n b\tc") == "a b c" and label("") == "(empty)" and label("x" * 50, 5) == "xxxx…"
    assert markdown("a | <b>\n&") == "a \\| &lt;b> &amp;"


def test_a_history_that_was_cut_is_said_in_the_report(tmp_path):
    write_json(
        tmp_path / "record.json", {"status": "done", "updates": 3, "settings": {}, "data": {}}
    )
    line = {"update": 1, "loss": 1.0, "target_tokens": 1, "learning_rate": 1.0, "grad_norm": 1.0}
    write_lines(tmp_path / "history.jsonl", [line])
    notes = report.context(Folder(tmp_path))["notes"]
    assert any(note.startswith("history.jsonl holds 1 of the 3 updates") for note in notes)
    write_lines(tmp_path / "history.jsonl", [{**line, "update": i} for i in (1, 2, 3)])
    assert not any("history.jsonl" in note for note in report.context(Folder(tmp_path))["notes"])
