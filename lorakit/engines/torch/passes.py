"""Forward passes: a micro-batch goes in packed or padded, and what its targets need comes out."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lorakit.engines.torch.kernels import attention
from lorakit.engines.torch.kernels.device import flush_denormals, pad_multiple
from lorakit.engines.torch.prefixes import pack
from lorakit.engines.torch.transfer import moved, to_device
from lorakit.tasks.batches import Batch


class Passes:
    """Runs a model over micro-batches.

    `packing`: documents lie end to end in one row, else each in a padded row of its own. `shares`: in a pack, what the
    documents of a row begin with is computed once. `autocast`: what the passes compute in, where that is not the dtype
    of the weights.
    """

    packing = shares = False

    def __init__(
        self,
        model: Any,
        bare: Any,
        device: torch.device,
        autocast: torch.dtype | None,
        pad_id: int,
    ):
        """`bare`: the model without its adapters' wrapper."""
        self.model, self.bare, self.device = model, bare, device
        self.autocast, self.pad_id = autocast, pad_id
        self.arguments = inspect.signature(bare.forward).parameters
        self.words = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        self.keeps_logits = "logits_to_keep" in self.arguments

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, at the precision of the passes."""
        training = self.model.training
        self.model.eval()
        try:
            with self.precision(), flush_denormals():
                yield
        finally:
            self.model.train(training)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """(K, H): what the head sees where it predicts the K targets."""
        return self._forward(
            getattr(self.bare, self.bare.base_model_prefix), batch, "last_hidden_state"
        )

    def logits(self, batch: Batch) -> torch.Tensor:
        """(K, V) logits that predict the K targets, in the batch's order."""
        return self._forward(self.model, batch, "logits")

    def class_logits(self, batch: Batch) -> torch.Tensor:
        """(D, C) in fp32."""
        return self.model(**self.padded_inputs(batch))["logits"].float()

    def _forward(self, model: Any, batch: Batch, wanted: str) -> torch.Tensor:
        return (self._forward_packed if self.packing else self._forward_padded)(
            model, batch, wanted
        )

    def _forward_packed(self, model: Any, batch: Batch, wanted: str) -> torch.Tensor:
        places = np.flatnonzero(batch.targets)
        made = pack(batch, pad_multiple(self.device, self.autocast), self.shares)
        there = to_device(
            self.device,
            ids=made.ids,
            position=made.positions,
            before=made.where[places - 1],
            ends=np.append(0, np.cumsum(made.lengths)),
            **({} if made.keys is None else {"keys": made.keys}),
        )
        before, size = there["before"], len(made.ids)
        documents = attention.Documents(
            made.lengths,
            self.device,
            ends=there["ends"].int(),
            keys=there.get("keys"),
            key_lengths=made.key_lengths,
        )
        keeps = self.keeps_logits and wanted == "logits" and len(places) != size
        with attention.packed():
            out = model(
                input_ids=there["ids"][None],
                # without one transformers waits for the card to see whether this is a pack
                attention_mask=torch.ones(1, size, dtype=torch.bool, device=self.device),
                position_ids=there["position"][None],
                use_cache=False,
                documents=documents,
                **({"logits_to_keep": before} if keeps else {}),
            )[wanted][0]
        # some models pay no heed to logits_to_keep
        return out[before] if len(out) == size else out

    def _forward_padded(self, model: Any, batch: Batch, wanted: str) -> torch.Tensor:
        before = batch.positions[batch.targets] - 1
        kept, where = np.unique(before, return_inverse=True)
        there = to_device(
            self.device,
            document=batch.documents[batch.targets],
            before=before,
            kept=kept,
            where=where,
        )
        keep = {}
        if self.keeps_logits and wanted == "logits" and len(batch.ids):
            keep = {"logits_to_keep": there["kept"]}
        out = model(**self.padded_inputs(batch), use_cache=False, **keep)[wanted]
        shortened = keep and out.shape[1] == len(kept)  # else it pays no heed to logits_to_keep
        return out[there["document"], there["where" if shortened else "before"]]

    def padded_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Every document in a line of its own, beside its pictures or its sound."""
        given = self.media_inputs(batch.media)
        if not len(batch.ids):
            return given
        shape = (len(batch.lengths), int(batch.lengths.max()))  # (D, T)
        ids, mask = np.full(shape, self.pad_id), np.zeros(shape, dtype=np.int64)
        ids[batch.documents, batch.positions], mask[batch.documents, batch.positions] = batch.ids, 1
        return self.token_inputs(torch.from_numpy(ids), torch.from_numpy(mask)) | given

    def token_inputs(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tokens (D, T) under the names that the model gives them; which stand for a picture, where it asks."""
        given = {self.words: ids, self.words.replace("input_ids", "attention_mask"): mask}
        picture = getattr(self.model.config, "image_token_id", None)
        if picture is not None:
            given |= {
                name: (ids == picture).long()
                for name in ("token_type_ids", "mm_token_type_ids")
                if name in self.arguments
            }
        return {name: moved(value, self.device) for name, value in given.items()}

    def media_inputs(self, media: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """The inputs of all documents, joined; where they differ in size, zeros fill them up."""
        out = {}
        for name in media[0] if media else ():
            if name not in self.arguments:
                continue
            parts = [torch.from_numpy(np.ascontiguousarray(one[name])) for one in media]
            most = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
            parts = [
                F.pad(
                    p,
                    [
                        n
                        for m, s in zip(most[::-1], p.shape[:0:-1], strict=True)
                        for n in (0, m - s)
                    ],
                )
                for p in parts
            ]
            value = moved(torch.cat(parts), self.device)
            wide = self.model.dtype if self.autocast else torch.float32
            out[name] = value.to(wide) if value.is_floating_point() else value
        return out
