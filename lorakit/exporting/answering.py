"""What `lorakit serve` adds to the chat completions of `transformers serve`: whether to ask a person, and the form.

Where `lorakit trust` found a threshold, each answer of `/v1/chat/completions` carries beside OpenAI's fields

    "lorakit": {"ask_a_person": false, "log_probability": -0.04}

`ask_a_person` is false only for an answer that is surer than the threshold (nats, summed over the answer and its end),
was chosen greedily (it is unless the request sets a temperature) and ended by itself. A streamed answer then comes in
one piece, since nobody knows how sure it is before its end. Held to the form that `lorakit form` found, each token is
the most probable one after which the answer may still get that form.

Calls of the tools that a request offers become `tool_calls`: where `transformers serve` cannot read a model's form, as
the scores read it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi.responses import JSONResponse, StreamingResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import get_response_template

from lorakit.models.constrained import Accepted
from lorakit.results.evidence import trust
from lorakit.results.evidence.form import taught
from lorakit.results.form import Form, acceptor
from lorakit.runs.folder import RunFolder
from lorakit.tasks import calls

SAMPLING = ("temperature", "top_p", "generation_config")  # of a request that may be sampled
TEXT = {"input_ids", "attention_mask"}


@torch.no_grad()
def log_probability(model: Any, prompt: torch.Tensor, answer: torch.Tensor) -> float:
    """log p(answer (A,) | prompt (1, T)) in nats."""
    ids = torch.cat([prompt, answer[None]], dim=1)
    logits = model(input_ids=ids).logits[0, prompt.shape[1] - 1 : -1].float()  # (A, V)
    return float(logits.log_softmax(-1).gather(1, answer[:, None]).sum())


def with_calls(completion: dict[str, Any], tools: calls.Tools | None) -> dict[str, Any]:
    """The completion with the calls of offered tools that stand in its words as `tool_calls`."""
    for choice in completion["choices"] if tools else ():
        message = choice["message"]
        words = message.get("content") or ""
        made = [] if message.get("tool_calls") else calls.found(words, tools or ()) or []
        offered = {tool.get("function", tool).get("name") for tool in tools or ()}
        if not made or not {call.name for call in made} <= offered:
            continue
        message["content"], choice["finish_reason"] = calls.said_before(words, made), "tool_calls"
        message["tool_calls"] = [
            {
                "id": f"{completion['id']}_tool_call_{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for place, call in enumerate(made)
        ]
    return completion


class Kept:
    """A manager of generations that remembers the tokens it generated last."""

    def __init__(self, manager: Any):
        self.manager, self.answer = manager, torch.zeros(0, dtype=torch.long)

    async def generate_non_streaming(self, *args: Any, **options: Any) -> tuple[str, int, Any]:
        text, length, self.answer = await self.manager.generate_non_streaming(*args, **options)
        return text, length, self.answer


class Answering(ChatCompletionHandler):
    """Handles `/v1/chat/completions` of one run; `of` makes the class that a server builds."""

    stop_ids: list[int]
    form: Form | None
    threshold: Mapping[str, Any] | None

    @classmethod
    def of(cls, path: str | Path, *, held: bool) -> type[Answering]:
        """For a run; `held`: to the form that was found for it."""
        folder = RunFolder.of(path)
        return type(
            "AnsweringRun",
            (cls,),
            {
                "stop_ids": folder.meta()["stop_ids"],
                "form": taught(folder) if held else None,
                "threshold": trust.known(folder),
            },
        )

    def _build_generation_config(self, body: dict, *args: Any, **options: Any) -> Any:
        settings = super()._build_generation_config(body, *args, **options)
        if not any(body.get(name) is not None for name in SAMPLING):
            settings.do_sample = False  # as the answers that the threshold was found for
        return settings

    def _held(self, inputs: Any, processor: Any) -> Any:
        if self.form is None:
            return inputs
        tokenizer = getattr(processor, "tokenizer", processor)
        accepts = acceptor(self.form, tokenizer, self.stop_ids)
        width = inputs["input_ids"].shape[-1]
        return {**inputs, "logits_processor": [Accepted(accepts, width, self.stop_ids)]}

    async def _non_streaming(
        self, request_id: str, model: Any, processor: Any, model_id: str, inputs: Any,
        gen_config: Any, gen_manager: Any, tools: Any = None,
    ) -> JSONResponse:  # fmt: skip
        kept, held = Kept(gen_manager), self._held(inputs, processor)
        response = await super()._non_streaming(
            request_id, model, processor, model_id, held, gen_config, gen_manager=kept, tools=tools
        )
        content, answer = with_calls(json.loads(bytes(response.body)), tools), kept.answer.clone()
        if self.threshold is None:
            return JSONResponse(content)
        said: dict[str, Any] = {"ask_a_person": True, "log_probability": None}
        if len(answer) and answer[-1] in self.stop_ids and {*inputs} <= TEXT:
            answer[-1] = self.stop_ids[0]  # the end that the threshold was found with
            value = await gen_manager.async_submit(
                log_probability, model, inputs["input_ids"], answer
            )
            sure = not gen_config.do_sample and trust.passes(self.threshold, value)
            said = {"ask_a_person": not sure, "log_probability": value}
        return JSONResponse({**content, "lorakit": said})

    def _streaming(
        self, request_id: str, model: Any, processor: Any, model_id: str, inputs: Any,
        gen_config: Any, gen_manager: Any, tools: Any = None,
    ) -> StreamingResponse:  # fmt: skip
        given = (request_id, model, processor, model_id)
        unread = tools and get_response_template(processor, model) is None
        if self.threshold is None and not unread:
            held = self._held(inputs, processor)
            return super()._streaming(*given, held, gen_config, gen_manager, tools)

        async def whole() -> AsyncIterator[str]:
            response = await self._non_streaming(*given, inputs, gen_config, gen_manager, tools)
            content = json.loads(bytes(response.body)) | {"object": "chat.completion.chunk"}
            for choice in content["choices"]:
                choice["delta"] = choice.pop("message")
                for place, call in enumerate(choice["delta"].get("tool_calls") or ()):
                    call["index"] = place
            yield f"data: {json.dumps(content)}\n\n"

        return StreamingResponse(whole(), media_type="text/event-stream")
