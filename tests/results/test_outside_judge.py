"""A judge behind an address: both orders, ties, agreement with itself, cost, and what is refused."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lorakit import cli
from lorakit.common.errors import LorakitError
from lorakit.results import outside_judge
from lorakit.results.outside_judge import Judge, judged
from lorakit.runs.folder import write_lines


class StandIn(BaseHTTPRequestHandler):
    """Answers as a model would whose taste is `taste(answer A, answer B)`."""

    taste, failures, seen = staticmethod(lambda a, b: "T"), 0, []

    def log_message(self, *_):
        pass

    def _reply(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self._reply({"data": [{"id": "wise"}]})

    def do_POST(self):
        cls = type(self)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls.seen.append((body["model"], self.headers.get("Authorization")))
        if cls.failures:
            cls.failures -= 1
            return self._reply({}, 503)
        words = body["messages"][0]["content"]
        first, second = (
            words.partition("Answer A:\n")[2].split("\n\nReply")[0].split("\n\nAnswer B:\n")
        )
        said = cls.taste(first, second)
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": None}
        self._reply({"choices": [{"message": {"content": said}}], "usage": usage})


@pytest.fixture
def stand_in(monkeypatch):
    """(the class to set up, its address)"""
    handler = type("OneStandIn", (StandIn,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(outside_judge.time, "sleep", lambda _: None)
    monkeypatch.delenv(outside_judge.KEY, raising=False)
    yield handler, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def answers(folder, rows):
    """Test rows whose answer after training is 'good', but for the equal ones; `rows`: (before, after)."""
    lines = [
        {"prompt": f"q{i}", "reference": "r", "before": b, "after": a}
        for i, (b, a) in enumerate(rows)
    ]
    write_lines(folder.answers, lines)


def test_an_honest_judge_prefers_the_better_answers(copied, stand_in):
    handler, url = stand_in
    handler.taste = staticmethod(lambda a, b: "A" if a == "good" else "**B**")
    answers(copied, [("bad", "good")] * 36 + [("same", "same ")] * 4)
    target, lines = judged(copied.path, url, prices=(2.0, 10.0))
    found = json.loads(target.read_text())
    assert target.name == "scores-judge.json"
    assert (found["after"], found["before"], found["ties"], found["equal_answers"]) == (36, 0, 4, 4)
    assert found["same_in_both_orders"] == [36, 36] and found["same_when_asked_again"] == [20, 20]
    assert found["calls"] == 92 and found["tokens"] == {
        "prompt_tokens": 9200,
        "completion_tokens": 184,
    }
    assert found["cost"] == pytest.approx(9200 * 2e-6 + 184 * 1e-5)
    assert lines[0].startswith(
        "The answers after training are preferred: +90 points (95 % interval +"
    )
    assert "36 of 40 (90 %, 95 % interval 76 to 97 %)" in lines[1]
    assert {*handler.seen} == {("wise", None)}


def test_a_judge_that_takes_the_first_answer_shows_nothing(copied, stand_in):
    handler, url = stand_in
    handler.taste = staticmethod(lambda a, b: "A")
    answers(copied, [("bad", "good")] * 40)
    target, lines = judged(copied.path, url, judge="named")
    found = json.loads(target.read_text())
    assert found["ties"] == 40 and found["same_in_both_orders"] == [0, 40] and "cost" not in found
    assert lines[0] == "No preference is shown: +0 points (95 % interval +0 to +0)."
    assert handler.seen[0][0] == "named"


def test_too_few_rows_and_unreadable_replies_are_said(copied, stand_in, capsys):
    handler, url = stand_in
    handler.taste = staticmethod(lambda a, b: "hmm")
    answers(copied, [("bad", "good")] * 5)
    assert cli.main(["evaluate", str(copied.path), "--judge", url]) == 0
    out = capsys.readouterr().out
    assert "Cannot tell: 5 rows are too few; at least 30 are needed." in out
    assert "Unreadable replies: 15." in out and "15 calls, 1,500 tokens read, 30 written" in out


def test_a_busy_judge_is_asked_again_and_the_key_stays_out_of_sight(copied, stand_in, monkeypatch):
    handler, url = stand_in
    monkeypatch.setenv(outside_judge.KEY, "secret")
    handler.failures = 2
    answers(copied, [("bad", "good")])
    target, lines = judged(copied.path, url)
    assert handler.seen[0] == ("wise", "Bearer secret") and len(handler.seen) == 5
    assert "secret" not in target.read_text() + "".join(lines)
    handler.failures = 99
    with pytest.raises(LorakitError) as raised:
        judged(copied.path, url)
    assert "503" in str(raised.value) and "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://example.org/v1"])
def test_no_address_and_no_encryption_are_refused(url, monkeypatch):
    monkeypatch.setenv(outside_judge.KEY, "secret")
    with pytest.raises(LorakitError) as raised:
        Judge.at(url)
    assert raised.value.setting == "--judge" and raised.value.value == url


def test_two_questions_at_once_are_refused(copied, capsys):
    assert cli.main(["evaluate", str(copied.path), "--suite", "x", "--judge", "http://x/v1"]) == 1
    assert "--suite and --judge do not go together" in capsys.readouterr().err
