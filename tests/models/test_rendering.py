"""A chat template that runs without end, or fills the memory, for some turns alone."""

import json
import multiprocessing
import sys
import threading
import time

import pytest
from helpers.models import byte_tokenizer

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.models import rendering
from lorakit.models.rendering import limited_memory, rendered

PLAIN = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FIXED = "{% set n = messages | length %}{% if n > 2 %}" + SLOW + "{% endif %}" + PLAIN
BIG = "{% if messages | length > 2 %}{{ 'a' * (1000 * 1000 * 1000 * 1000) }}{% endif %}" + PLAIN
TURN = {"role": "user", "content": "Hello."}


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.3)


def reader(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_is_interrupted_and_the_next_one_is_not(hurried):
    tokenizer, begun = reader(FIXED), time.monotonic()
    with pytest.raises(LorakitError, match="does not end within 0.3 s on these turns") as refused:
        rendered(tokenizer, [TURN] * 3, "rows.jsonl:7")
    assert time.monotonic() - begun < 20
    assert refused.value.where == "rows.jsonl:7" and refused.value.setting == "model"
    assert rendered(tokenizer, [TURN]) == "Hello." + tokenizer.eos_token
    time.sleep(0.7)  # nothing is interrupted that renders no longer


def test_each_thread_is_watched_on_its_own(hurried):
    found = []

    def work(turns):
        try:
            found.append(rendered(tokenizer, [TURN] * turns)[:6])
        except LorakitError as error:
            found.append(error.message[-25:])

    tokenizer = reader(FIXED)
    threads = [threading.Thread(target=work, args=(turns,)) for turns in (3, 1, 3)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert sorted(found) == ["Hello.", *["0.3 s on these turns"[-25:]] * 2] or len(found) == 3


def test_a_forked_process_watches_itself(hurried):
    tokenizer = reader(FIXED)
    rendered(tokenizer, [TURN])  # the watch of this process runs

    def child(connection):
        try:
            rendered(tokenizer, [TURN] * 3)
        except LorakitError as error:
            connection.send(error.message)

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(20) and "does not end" in ours.recv()
    process.join()


def test_what_a_template_raises_itself_is_passed_on():
    with pytest.raises(Exception, match="no such role"):
        rendered(reader("{{ raise_exception('no such role') }}"), [TURN])


@pytest.mark.skipif(sys.platform != "linux", reason="no limit elsewhere")
def test_a_template_that_fills_the_memory(monkeypatch):
    import resource

    monkeypatch.setattr(rendering, "MORE_BYTES", 2**28)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    big = BIG.replace("(1000 * 1000 * 1000 * 1000)", "(1000 * 1000 * 1000)")  # 1 GB
    with limited_memory(), limited_memory(), pytest.raises(LorakitError, match="more memory"):
        rendered(reader(big), [TURN] * 3)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize(("template", "problem"), [(FIXED, "does not end"), (BIG, "more memory")])
def test_rows_that_a_template_does_not_end_on_stop_the_run(
    template, problem, base, tmp_path, hurried
):
    rows = [
        [TURN, {"role": "assistant", "content": f"Yes {i}."}] * (1 + i // 30) for i in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
    (tmp_path / "t.jinja").write_text(template)
    run = lorakit.Run(data=str(path), model=base, chat_template=str(tmp_path / "t.jinja"))
    with pytest.raises(LorakitError, match=problem) as refused:
        lorakit.prepare(run)
    assert "rows.jsonl" in refused.value.where and refused.value.cure
