"""The loss of a micro-batch: to train by, with a gradient, and to score by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lorakit.engines import protocol
from lorakit.engines.torch.kernels import loss
from lorakit.engines.torch.out_of_memory import out_of_memory
from lorakit.engines.torch.passes import Passes
from lorakit.engines.torch.transfer import moved, to_device
from lorakit.tasks.batches import Batch
from lorakit.tasks.protocol import Objective


class Losses:
    """What an objective makes of a model's passes. `head`: the model's own, where `kernels.loss` can stand for it."""

    def __init__(self, passes: Passes, objective: Objective, options: dict[str, float]):
        self.passes, self.objective, self.options = passes, objective, options
        self.head = None if objective.NEEDS == "class_logits" else find_head(passes)

    def summed(self, batch: Batch) -> torch.Tensor:
        """The sum over the targets, in nats."""
        if self.objective.NEEDS == "class_logits":
            labels = moved(batch.values["label"], self.passes.device)
            return F.cross_entropy(self.passes.class_logits(batch), labels, reduction="sum")
        if self.objective.NEEDS == "document_logps":
            values = {
                n: moved(np.asarray(v, np.float32), self.passes.device)
                for n, v in batch.values.items()
            }
            logps = -self._document_losses(batch)
            assert self.objective.losses
            return self.objective.losses(torch, logps, values, self.options).sum()
        target_ids = self._target_ids(batch)
        if self.head is None:
            logits = self.passes.logits(batch).float()
            if batch.weights is None:
                return F.cross_entropy(logits, target_ids, reduction="sum")
            weights = moved(batch.weights[batch.targets], self.passes.device)
            return (F.cross_entropy(logits, target_ids, reduction="none") * weights).sum()
        hidden = self.passes.hidden(batch)
        if batch.weights is None:
            return loss.linear_cross_entropy(hidden, target_ids=target_ids, **self.head)
        # A few distinct weights: each is a factor of the sum over its targets.
        weights, parts = batch.weights[batch.targets], []
        for weight in np.unique(weights):
            chosen = to_device(self.passes.device, at=np.flatnonzero(weights == weight))["at"]
            part = loss.linear_cross_entropy(
                hidden[chosen], target_ids=target_ids[chosen], **self.head
            )
            parts.append(float(weight) * part)
        return torch.stack(parts).sum()

    def _target_ids(self, batch: Batch) -> torch.Tensor:
        return to_device(self.passes.device, ids=batch.ids[batch.targets])["ids"]

    def _document_losses(self, batch: Batch) -> torch.Tensor:
        """(D,) summed losses of the documents' targets, in nats, each with a gradient of its own."""
        target_ids, count = self._target_ids(batch), len(batch.lengths)
        document = to_device(self.passes.device, at=batch.documents[batch.targets])["at"]
        if self.head is not None:
            return loss.document_losses(
                self.passes.hidden(batch),
                target_ids=target_ids,
                document=document,
                count=count,
                **self.head,
            )
        losses = F.cross_entropy(self.passes.logits(batch).float(), target_ids, reduction="none")
        return losses.new_zeros(count).index_add(0, document, losses)

    @torch.no_grad()
    def predict(self, batch: Batch) -> np.ndarray:
        if self.objective.NEEDS == "class_logits":
            return self._predict_labels(batch)
        scores = self.score_documents(batch)
        if self.objective.NEEDS == "document_logps":
            assert self.objective.statistics
            return self.objective.statistics(scores, batch.values, self.options)
        return scores

    @torch.no_grad()
    def score_documents(self, batch: Batch) -> np.ndarray:
        """(D, 3), see `Engine.score_documents`."""
        target_ids = self._target_ids(batch)
        with self.passes.evaluating():
            if self.head is None:
                logits = self.passes.logits(batch).float()
                losses, right = (
                    F.cross_entropy(logits, target_ids, reduction="none"),
                    logits.argmax(-1) == target_ids,
                )
            else:
                losses, right = loss.scores(
                    self.passes.hidden(batch), target_ids=target_ids, **self.head
                )
        losses, right = losses.double().cpu().numpy(), right.cpu().numpy()
        return protocol.per_document(batch, losses, right)

    def _predict_labels(self, batch: Batch) -> np.ndarray:
        """(D, 3 + C)"""
        with self.passes.evaluating():
            logits = self.passes.class_logits(batch).double().cpu()
        unknown = np.zeros(len(logits), dtype=np.int64)  # of a question
        labels = torch.from_numpy(batch.values.get("label", unknown))
        losses, right = (
            F.cross_entropy(logits, labels, reduction="none"),
            logits.argmax(-1) == labels,
        )
        return torch.column_stack(
            [losses, torch.ones_like(losses), right, logits.softmax(-1)]
        ).numpy()


def find_head(passes: Passes) -> dict[str, Any] | None:
    """What `kernels.loss` needs to stand for the model's own head; None where its logits differ: tried out."""
    config, layer = (
        passes.bare.config.get_text_config(decoder=True),
        passes.bare.get_output_embeddings(),
    )
    if hasattr(layer, "modules_to_save"):  # trained beside the adapter
        layer = layer.modules_to_save[layer.active_adapter]
    if type(layer) is not torch.nn.Linear or layer.bias is not None:
        return None
    head = {
        "weight": layer.weight,
        "softcap": getattr(config, "final_logit_softcapping", None),
        "scale": getattr(config, "logit_scale", None)
        or 1 / (getattr(config, "logits_scaling", None) or 1),
    }
    batch = Batch(np.arange(1, 9), np.arange(8) > 0, np.array([8]), np.array([0]))
    with torch.no_grad(), passes.evaluating():
        try:
            mine, own = loss.logits(passes.hidden(batch), **head), passes.logits(batch).float()
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            return None
    return (
        head if torch.allclose(mine, own, rtol=0.02, atol=0.02 * float(own.abs().max())) else None
    )
