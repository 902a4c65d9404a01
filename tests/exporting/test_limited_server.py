"""What the endpoint refuses before the model sees it."""

import asyncio

import pytest

from lorakit.exporting.limited_server import LimitedBody, limited

pytest.importorskip("starlette")


async def echo(scope, receive, send):
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(app, *parts, host=b"127.0.0.1:8000", length=None):
    """(status, body) of a request whose body comes in these parts."""
    sent, waiting = [], list(parts)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    headers = [(b"host", host)] + ([(b"content-length", length)] if length else [])
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "scheme": "http"}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_a_small_request_arrives_whole():
    assert ask(LimitedBody(echo, 10), b"abc", b"def") == (200, b"abcdef")


@pytest.mark.parametrize("parts", [[b"a" * 11], [b"a" * 6, b"a" * 6]])
def test_a_large_request_is_refused_while_it_comes(parts):
    assert ask(LimitedBody(echo, 10), *parts)[0] == 413


@pytest.mark.parametrize("length", [b"11", b"-1", b"many"])
def test_a_large_or_senseless_announcement_is_refused_unread(length):
    assert ask(LimitedBody(echo, 10), b"", length=length)[0] == 413


@pytest.mark.parametrize(
    "host, status",
    [(b"127.0.0.1:8000", 200), (b"localhost", 200), (b"evil.example.com:8000", 400), (b"127.0.0.1.evil.com", 400)],
)  # fmt: skip
def test_a_request_under_another_name_is_refused(host, status):
    assert ask(limited(echo), b"abc", host=host)[0] == status
