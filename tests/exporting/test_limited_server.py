"""What the endpoint refuses before the model sees it."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorakit.exporting.limited_server import Limited, fitting, limited, window_of

pytest.importorskip("starlette")
CHAT = "/v1/chat/completions"


async def echo(scope, receive, send):
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(app, *parts, host=b"127.0.0.1:8000", length=None, path="/", origin=None):
    """(status, body) of a request whose body comes in these parts."""
    sent, waiting = [], list(parts)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    headers = [(b"host", host)] + ([(b"content-length", length)] if length else [])
    headers += [(b"origin", origin)] if origin else []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "scheme": "http"}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def refused(words, path=CHAT, **fields):
    body = json.dumps({"messages": [], **fields}).encode()
    status, answer = ask(Limited(echo, window=512), body, path=path)
    message = json.loads(answer)["error"]["message"] if status != 200 else ""
    return status == 400 and words in message and len(message) < 200


def test_a_small_request_arrives_whole():
    assert ask(Limited(echo, 10), b"abc", b"def") == (200, b"abcdef")


@pytest.mark.parametrize("parts", [[b"a" * 11], [b"a" * 6, b"a" * 6]])
def test_a_large_request_is_refused_while_it_comes(parts):
    assert ask(Limited(echo, 10), *parts)[0] == 413


@pytest.mark.parametrize("length", [b"11", b"-1", b"many"])
def test_a_large_or_senseless_announcement_is_refused_unread(length):
    assert ask(Limited(echo, 10), b"", length=length)[0] == 413


@pytest.mark.parametrize(
    "host, status",
    [(b"127.0.0.1:8000", 200), (b"localhost", 200), (b"evil.example.com:8000", 400), (b"127.0.0.1.evil.com", 400)],
)  # fmt: skip
def test_a_request_under_another_name_is_refused(host, status):
    assert ask(limited(echo), b"abc", host=host)[0] == status


@pytest.mark.parametrize(
    "origin, status",
    [
        (b"http://localhost:3000", 200),
        (b"http://127.0.0.1", 200),
        (b"http://[::1]:80", 200),
        (b"http://evil.example.com", 403),
        (b"http://127.0.0.1.evil.com", 403),
        (b"null", 403),
    ],
)
def test_a_page_of_another_site_is_refused(origin, status):
    """A form needs no leave of the server to send its request, and its Host is right."""
    assert ask(limited(echo), b"abc", origin=origin)[0] == status


@pytest.mark.parametrize("path", ["/reset", "/load_model", "/load_model/"])
def test_the_model_can_neither_be_dropped_nor_replaced(path):
    assert ask(limited(echo), b"{}", path=path)[0] == 404


@pytest.mark.parametrize(
    "name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"]
)
@pytest.mark.parametrize("value", [10**9, 513, 0, -1, True, "512", 1.5, [1], "9" * 10**6])
def test_an_answer_longer_than_the_window_is_refused(name, value):
    assert refused(f"'{name}' must be a whole number from 1 to 512", **{name: value})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/other"])
def test_the_limits_hold_on_every_path(path):
    assert refused("from 1 to 512", path=path, max_output_tokens=10**9)


@pytest.mark.parametrize(
    "words, fields",
    [
        ("'n' must be 1", {"n": 1000}),
        ("'n' must be 1", {"n": "1"}),
        ("'stop' takes 16 strings", {"stop": ["a"] * 17}),
        ("'stop' takes 16 strings", {"stop": "a" * 201}),
        ("'stop' takes 16 strings", {"stop": [""]}),
        ("'stop' takes 16 strings", {"stop": {"a": 1}}),
        ("'logit_bias' takes an object", {"logit_bias": {str(i): 1 for i in range(1001)}}),
        ("'logit_bias' takes an object", {"logit_bias": [1]}),
        ("does not take 'num_beams'", {"generation_config": '{"num_beams": 1000}'}),
        ("from 1 to 512", {"generation_config": '{"max_new_tokens": 1000000}'}),
        ("as JSON in a text", {"generation_config": "[" * 10**5}),
        ("as JSON in a text", {"generation_config": {"a": 1}}),
        ("as JSON in a text", {"generation_config": "5"}),
    ],
)
def test_requests_that_multiply_the_work_are_refused(words, fields):
    assert refused(words, **fields)


def test_what_clients_usually_send_passes():
    request = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 512,
        "temperature": 0.5,
        "n": 1,
        "stop": ["\n", "###"],
        "logit_bias": {"5": 1},
        "generation_config": '{"do_sample": false, "max_new_tokens": 5}',
    }
    body = json.dumps(request).encode()
    assert ask(Limited(echo, window=512), body, path=CHAT) == (200, body)
    for other in (b"", b"\x00not json", b"[1]", b'"max_tokens"'):
        assert ask(Limited(echo, window=512), other, path=CHAT) == (200, other)


def test_a_request_of_many_levels_is_refused():
    assert ask(Limited(echo), b'{"a":' * 50_000, path=CHAT)[0] == 400


class Manager:
    """Stands for the manager of generations of `transformers serve`."""

    def generate_streaming(self, model, processor, inputs, gen_config, request_id):
        return gen_config.max_new_tokens

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        return gen_config.max_new_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "tokens, wanted, given", [(5, 1024, 7), (5, 3, 3), (5, None, 7), (11, 9, 1)]
)
def test_an_answer_ends_with_the_window(tokens, wanted, given, stream):
    from fastapi import HTTPException

    manager = fitting(Manager, 12)()

    def generate(length):
        inputs = {"input_ids": torch.zeros(1, length, dtype=torch.long)}
        settings = SimpleNamespace(max_new_tokens=wanted)
        arguments = (None, None, inputs, settings)
        if stream:
            return manager.generate_streaming(*arguments, request_id="1")
        return asyncio.run(manager.generate_non_streaming(*arguments, request_id="1"))

    assert generate(tokens) == given
    with pytest.raises(HTTPException) as too_long:
        generate(12)
    assert too_long.value.status_code == 400 and "12 tokens" in too_long.value.detail


def test_the_window_is_the_model_s(base):
    known = json.loads(Path(base, "config.json").read_text())["max_position_embeddings"]
    assert window_of(base) == known
