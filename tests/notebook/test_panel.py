"""The live panel: what it reads, what it draws, what it costs. How it is shown in place: test_launch.py."""

import json
import re
import time
import xml.etree.ElementTree as ElementTree

import pytest

from lorakit.notebook import curve, live
from lorakit.runs.folder import Folder


def line(update, loss=2.0, **more):
    return {"update": update, "loss": loss, "target_tokens": 50, "seconds": 0.5, **more}


def test_the_history_is_read_on_and_read_anew_when_the_run_goes_back(tmp_path):
    folder = Folder(tmp_path)
    tail = live.Tail(folder)
    assert tail.read() == ([], [])
    folder.append(line(1))
    folder.append({"update": 1, "validation_loss": 3.0})
    assert tail.read() == folder.history() == ([line(1)], [{"update": 1, "validation_loss": 3.0}])
    with open(folder / "history.jsonl", "a") as file:
        file.write(
            json.dumps(line(2)) + '\nnonsense\n[1]\n{"update": 3, "lo'
        )  # a line that is being written
    assert tail.read()[0] == [line(1), line(2)]
    with open(folder / "history.jsonl", "a") as file:
        file.write('ss": 1.0}\n')
    assert tail.read()[0] == [line(1), line(2), {"update": 3, "loss": 1.0}]
    (folder / "history.jsonl").write_text(
        json.dumps(line(1)) + "\n" + json.dumps({"update": 2, "loss": 0.5}) + "\n"
    )
    folder.rewind(1)
    assert tail.read() == ([line(1)], [])
    (folder / "history.jsonl").unlink()
    assert tail.read() == ([], [])


def drawn(updates, validations=(), planned=None, words=""):
    found = ElementTree.fromstring(curve.svg(updates, list(validations), planned, words))
    lines = {
        e.get("stroke-width"): [
            tuple(map(float, p.split(","))) for p in (e.get("points") or "").split()
        ]
        for e in found.iter("polyline")
    }
    return found, lines


def test_the_curve_lies_where_the_losses_are():
    """Round marks from 0 to the highest loss; the last update ends at its share of those planned."""
    found, lines = drawn(
        [line(1, 4.0), line(2, 2.0)], [{"update": 2, "validation_loss": 3.0}], planned=4
    )
    bottom, top = curve.HEIGHT - curve.BOTTOM, curve.TOP
    wide = curve.WIDTH - curve.LEFT - curve.RIGHT
    assert lines["1"] == [
        (curve.LEFT + wide / 4, pytest.approx(bottom - (bottom - top) / 1.05, abs=0.1)),
        (curve.LEFT + wide / 2, pytest.approx(bottom - (bottom - top) / 2.1, abs=0.1)),
    ]
    assert [e.get("cx") for e in found.iter("circle")] == [f"{curve.LEFT + wide / 2:.1f}"]
    marks = [e.text for e in found.iter("text")]
    assert marks[:5] == ["0", "1", "2", "3", "4"] and marks[5:10] == ["0", "1", "2", "3", "4"]
    assert {"training rows", "validation rows"} <= set(marks)


def test_a_loss_that_fell_far_is_drawn_on_a_log_scale_and_what_is_no_number_is_left_out():
    updates = [line(i, 100.0 * 0.9**i) for i in range(90)] + [
        line(90, float("nan")),
        line(91, float("inf")),
    ]
    found, lines = drawn(updates)
    assert len(lines["1"]) == 90
    steps = [b[1] - a[1] for a, b in zip(lines["1"], lines["1"][1:])]
    assert max(steps) == pytest.approx(
        min(steps), abs=0.2
    )  # a tenth less each time: a straight line
    assert not {"nan", "inf"} & set(
        re.findall(r"[a-z]+", " ".join(e.get("points", "") for e in found.iter()))
    )


def test_many_updates_are_drawn_as_means():
    _, lines = drawn([line(i, i % 2 * 2.0) for i in range(10_000)])
    assert 150 <= len(lines["1"]) <= curve.POINTS and len({y for _, y in lines["1"][:-1]}) == 1
    assert drawn([])[1] == {"1": [], "2": [], "1.5": []}


def test_nothing_that_is_read_becomes_markup():
    found, _ = drawn([line(1)], words='<script>"x"</script>')
    assert found.get("aria-label") == '<script>"x"</script>' and not list(found.iter("script"))


def test_what_else_is_known(monkeypatch):
    monkeypatch.setattr(live, "cards", live.Cards())
    monkeypatch.setattr(
        live.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": "87, 5222, 15360\n"})
    )
    found = live.facts(
        [line(1, learning_rate=1.25e-4, grad_norm=0.814, memory_bytes=3.2e9, skipped=1)]
    )
    assert found == [
        "learning rate 1.3e-04",
        "gradient 0.81",
        "memory 3.20 GB",
        "1 updates skipped",
        "GPU 87 %, 5.1 of 15.0 GiB",
    ]
    monkeypatch.setattr(
        live.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError())
    )
    live.cards._next = 0
    assert live.facts([]) == []


def test_a_panel_takes_a_hundredth_of_the_time(tmp_path, monkeypatch):
    """What is computed for a moment of a long run, in CPU seconds, against the second until the next one."""
    folder = Folder(tmp_path)
    (folder / "history.jsonl").write_text(
        "".join(json.dumps(line(i, 2.0 + 1 / i, memory_bytes=1)) + "\n" for i in range(1, 3001))
    )
    folder.note(status="running", updates_planned=5000)
    panel = live.Panel(folder)
    panel.tail.read()
    live.cards.read()

    def moment(update):
        folder.append(line(update))
        begun = time.process_time()
        updates, validations = panel.tail.read()
        words = panel.line("running", updates, validations)
        assert f"update {update:,} of 5,000" in panel.picture(words)
        return time.process_time() - begun

    assert min(moment(3000 + i) for i in range(1, 6)) < live.SHARE * live.EVERY


def test_the_studio_looks_less_often_where_looking_takes_long():
    pytest.importorskip("ipyvuetify")
    from lorakit.notebook.studio.page import paced

    def look():
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    assert paced(look) == pytest.approx(5.0, rel=0.2) and paced(lambda: time.sleep(0.1)) == 1.0


def test_a_terminal_gets_a_line(tmp_path, capsys):
    folder = Folder(tmp_path)
    panel = live.Panel(folder)
    panel.draw("queued")
    folder.append(line(1))
    panel.draw("running")
    panel.draw("running")
    panel.draw("done", last=True)
    shown = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    assert [s.strip() for s in shown] == [
        "queued",
        "3/5 train · update 1 · loss 2.000 · 100 target tokens/s",
        "done · update 1 · loss 2.000 · 100 target tokens/s",
    ]
