"""Greedy answers by transformers' `generate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin

from lorakit.engines.torch.kernels import lora
from lorakit.engines.torch.passes import Passes
from lorakit.models.constrained import Accepted


@torch.no_grad()
def generate(
    passes: Passes,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: list[int],
    media: Sequence[dict[str, np.ndarray]],
    *,
    drops_last: bool,
    accepts: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """See `Engine.generate`. `drops_last`: whether the model leaves the last token unread."""
    width = max(map(len, prompts))
    unread = [passes.pad_id] * drops_last
    ends = {} if unread else {"eos_token_id": stop_ids or None, "pad_token_id": passes.pad_id}
    ids = torch.tensor([[passes.pad_id] * (width - len(p)) + p + unread for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + len(unread)) for p in prompts])
    # Models that hear have a `generate` of their own, which decides about language and length.
    run = (
        partial(GenerationMixin.generate, passes.bare)
        if passes.model.config.is_encoder_decoder
        else passes.model.generate
    )
    with (
        passes.evaluating(),
        _dense_head(passes.bare),
        _without_max_length(passes.bare),
        lora.standing(),
    ):
        out = run(
            **passes.token_inputs(ids, mask),
            **_heard(passes.model, passes.media_inputs(media)),
            **ends,
            **({"logits_processor": [Accepted(accepts, width, stop_ids)]} if accepts else {}),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
    answers = []
    for row in out[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stop_ids), len(row))
        answers.append(row[:end])
    return answers


def _heard(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With a mask over all of a spectrogram (B, bands, frames): transformers warns that it cannot infer one."""
    if "input_features" not in given or not model.config.is_encoder_decoder:
        return given
    frames = given["input_features"]
    every = torch.ones(len(frames), frames.shape[-1], dtype=torch.long, device=frames.device)
    return {"attention_mask": every} | given


@contextlib.contextmanager
def _without_max_length(model: Any) -> Iterator[None]:
    """Inside, `max_new_tokens` alone limits answers; transformers warns where the model's files limit them too."""
    settings = getattr(model, "generation_config", None)
    given = getattr(settings, "max_length", None)
    if settings is not None and given is not None:
        settings.max_length = None
    try:
        yield
    finally:
        if settings is not None and given is not None:
            settings.max_length = given


@contextlib.contextmanager
def _dense_head(model: Any) -> Iterator[None]:
    """Inside, the head sees the last places in one piece: torch copies its weights for each row of a slice."""
    head = model.get_output_embeddings()
    hook = (
        None
        if head is None
        else head.register_forward_pre_hook(lambda module, given: given[0].contiguous())
    )
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
