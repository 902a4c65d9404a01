"""One micro-batch of rows without content, through a model without weights: what `working` counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lorakit.engines.torch.kernels import attention, loss
from lorakit.engines.torch.places import captions, places
from lorakit.models import served
from lorakit.run import Run


def packed(run: Run, model: Any, tokens: int) -> torch.Tensor:
    """The loss of documents of full length, one after the other."""
    length = min(run.max_length, tokens)
    lengths = [length] * (tokens // length) + [tokens % length] * (tokens % length > 0)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    documents = attention.Documents(lengths, ids.device)
    with attention.packed():
        hidden = getattr(model, model.base_model_prefix)(
            input_ids=ids, position_ids=ids, use_cache=False, documents=documents
        )["last_hidden_state"][0]
    return loss.linear_cross_entropy(hidden, model.get_output_embeddings().weight, ids[0])


def padded(run: Run, model: Any, tokens: int) -> torch.Tensor:
    """The loss of rows of full length beside each other. A tower that stays frozen keeps nothing: where its picture
    stands among the words, it is passed over."""
    config = model.config
    length = places(run) or min(run.max_length, 512, tokens)
    rows, heard = max(1, tokens // length), getattr(config, "max_source_positions", 0)
    words = torch.zeros(rows, length - heard, dtype=torch.long)
    given = {"input_ids": words, "attention_mask": words}
    side = getattr(config.vision_config if captions(config) else config, "image_size", None)
    if heard:
        given = {"decoder_" + name: ids for name, ids in given.items()} | {
            "input_features": torch.zeros(rows, config.num_mel_bins, 2 * heard, dtype=model.dtype)
        }
    elif not served.reads_words(config):
        given = {}
    if side:
        given["pixel_values"] = torch.zeros(rows, 3, side, side, dtype=model.dtype)
    if getattr(config, "image_token_id", None) is not None:
        hidden = model.get_decoder()(**given, use_cache=False)["last_hidden_state"].flatten(0, 1)
        return loss.linear_cross_entropy(
            hidden, model.get_output_embeddings().weight, words.flatten()
        )
    logits = model(**given)["logits"].float().flatten(0, -2)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
