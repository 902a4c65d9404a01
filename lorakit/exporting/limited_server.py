"""`transformers serve` behind limits: python -m lorakit.exporting.limited_server RUN_DIR [--form] serve MODEL …

Answers carry what was measured of the run, see `lorakit.exporting.answering`.

Without them one request of 150 MB holds 6.5 GB, and any web page could reach the server under a name of its own that it
points at this machine (DNS rebinding).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BYTES = 8 * 2**20  # of one request
MOST_CONNECTIONS = 16  # at the same time; one more is answered with 503
HOSTS = ["127.0.0.1", "localhost", "[::1]"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class LimitedBody:
    """ASGI middleware that answers 413 to a request of more than `most` bytes, announced or streamed."""

    def __init__(
        self, app: Callable[[Any, Receive, Send], Awaitable[None]], most: int = MOST_BYTES
    ):
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.most:
            return await self._refuse(send)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                return await self._refuse(send)
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return await self.app(scope, again, send)

    async def _refuse(self, send: Send) -> None:
        text = f"a request may have {self.most // 2**20} MB at most\n".encode()
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def limited(app: Any) -> Any:
    """The application behind the limits of size and host name."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(LimitedBody(app), allowed_hosts=HOSTS, www_redirect=False)


def main() -> None:
    import uvicorn
    from transformers.cli.serving import chat_completion
    from transformers.cli.transformers import main as transformers

    from lorakit.exporting.answering import Answering

    place = sys.argv.index("serve")
    path, *form = sys.argv[1:place]
    chat_completion.ChatCompletionHandler = Answering.of(path, held=bool(form))
    plain = uvicorn.Config

    def config(app: Any, **options: Any) -> uvicorn.Config:
        return plain(limited(app), limit_concurrency=MOST_CONNECTIONS, **options)

    uvicorn.Config = config  # type: ignore[assignment,misc]  # `transformers serve` offers no place for middleware
    sys.argv[:place] = ["transformers"]
    transformers()


if __name__ == "__main__":
    main()
