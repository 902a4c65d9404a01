"""`transformers serve` behind limits: python -m lorakit.exporting.limited_server RUN_DIR [--form] serve MODEL …

Answers carry what was measured of the run, see `lorakit.exporting.answering`.

Without them one request of 150 MB holds 6.5 GB, one for a billion tokens holds the model for days, and any web page
could reach the server: under a name of its own that it points at this machine (DNS rebinding), or by a plain form.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BYTES = 8 * 2**20  # of one request
MOST_CONNECTIONS = 16  # at the same time; one more is answered with 503
HOSTS = ["127.0.0.1", "localhost", "[::1]"]
MOST_TOKENS = 32_768  # of prompt and answer where the model's configuration names no window
MOST_STOPS, LONGEST_STOP = 16, 200  # strings that end an answer, characters of one
MOST_BIASES = 1000  # entries of `logit_bias`
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
CLOSED = ("/load_model", "/reset")  # would load any model of the hub, and drop this one
# What a request's own `generation_config` may hold: beams and sequences multiply the work of an answer.
GENERATION = {
    "do_sample", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p",
    "eos_token_id", "pad_token_id", "bos_token_id",
}  # fmt: skip

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that is answered with this status and reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def refuse_origin(scope: Any) -> None:
    """Raises `Refused` for a page of another site, and for a path that is closed."""
    from urllib.parse import urlsplit

    origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
    host = urlsplit(origin).hostname if origin else "localhost"
    if host not in {name.strip("[]") for name in HOSTS}:
        raise Refused(403, "requests of other sites are refused")
    if scope["path"].rstrip("/") in CLOSED:
        raise Refused(404, "this server keeps to one model")


def refuse_request(body: Any, window: int) -> None:
    """Raises `Refused` for a request that asks for more than one answer of the model's window."""
    if not isinstance(body, dict):
        return  # the server says what is wrong with it
    for name in LENGTHS:
        value = body.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= window):
            raise Refused(400, f"'{name}' must be a whole number from 1 to {window}")
    if body.get("n") not in (None, 1):
        raise Refused(400, "'n' must be 1: this server gives one answer")
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    ):
        raise Refused(
            400, f"'stop' takes {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters at most"
        )
    biases = body.get("logit_bias") or {}
    if not isinstance(biases, dict) or len(biases) > MOST_BIASES:
        raise Refused(400, f"'logit_bias' takes an object of {MOST_BIASES} entries at most")
    if (given := body.get("generation_config")) is None:
        return
    try:
        settings = json.loads(given)
        unknown = sorted({*settings} - GENERATION)
    except (ValueError, TypeError, RecursionError):
        raise Refused(400, "'generation_config' must be an object as JSON in a text") from None
    if unknown:
        raise Refused(400, f"'generation_config' does not take {unknown[0][:50]!r} here")
    refuse_request(settings, window)


class Limited:
    """ASGI middleware: answers requests that are larger, longer or from elsewhere than this server takes."""

    def __init__(
        self,
        app: Callable[[Any, Receive, Send], Awaitable[None]],
        most: int = MOST_BYTES,
        window: int = MOST_TOKENS,
    ):
        self.app, self.most, self.window = app, most, window

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            refuse_origin(scope)
            body = await self._body(scope, receive)
            if body is None:
                return None
            if scope["path"].startswith("/v1/") and body.lstrip()[:1] == b"{":
                refuse_request(_read(body), self.window)
        except Refused as refused:
            return await _answer(send, refused)
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self.app(scope, again, send)

    async def _body(self, scope: Any, receive: Receive) -> bytes | None:
        """The whole body; None when the client is gone. Raises `Refused` when it is too large."""
        too_large = Refused(413, f"a request may have {self.most // 2**20} MB at most")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.most:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                raise too_large
        return bytes(body)


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise Refused(400, "the request is nested too deeply") from None
    except ValueError:
        return None  # the server says what is wrong with it


async def _answer(send: Send, refused: Refused) -> None:
    """In the form of OpenAI's errors, which their clients show."""
    text = json.dumps({"error": {"message": refused.reason, "type": "invalid_request_error"}})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def limited(app: Any, window: int = MOST_TOKENS) -> Any:
    """The application behind the limits of size, length, origin and host name."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(
        Limited(app, window=window), allowed_hosts=HOSTS, www_redirect=False
    )


def window_of(folder: str) -> int:
    """Tokens of prompt and answer together that the model in a folder is made for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(known or MOST_TOKENS)


def fitting(manager: type, window: int) -> type:
    """A manager of generations that refuses prompts beyond the window, and ends answers there."""

    def fit(inputs: Any, settings: Any) -> None:
        from fastapi import HTTPException

        length = inputs["input_ids"].shape[-1]
        if length >= window:
            raise HTTPException(400, f"the prompt has {length} tokens, the model reads {window}")
        settings.max_new_tokens = min(settings.max_new_tokens or window, window - length)

    class Fitting(manager):
        def generate_streaming(
            self, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **more: Any
        ) -> Any:
            fit(inputs, gen_config)
            return super().generate_streaming(model, processor, inputs, gen_config, *args, **more)

        async def generate_non_streaming(
            self, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **more: Any
        ) -> Any:
            fit(inputs, gen_config)
            return await super().generate_non_streaming(
                model, processor, inputs, gen_config, *args, **more
            )

    return Fitting


def main() -> None:
    import uvicorn
    from transformers.cli.serving import chat_completion, utils
    from transformers.cli.transformers import main as transformers

    from lorakit.exporting.answering import Answering

    place = sys.argv.index("serve")
    path, *form = sys.argv[1:place]
    window = window_of(sys.argv[place + 1])
    chat_completion.ChatCompletionHandler = Answering.of(path, held=bool(form))
    utils.GenerateManager = fitting(utils.GenerateManager, window)
    plain = uvicorn.Config

    def config(app: Any, **options: Any) -> uvicorn.Config:
        return plain(limited(app, window), limit_concurrency=MOST_CONNECTIONS, **options)

    uvicorn.Config = config  # type: ignore[assignment,misc]  # `transformers serve` offers no place for middleware
    sys.argv[:place] = ["transformers"]
    transformers()


if __name__ == "__main__":
    main()
