"""The engine itself: what a loaded model computes, trains and saves."""

from __future__ import annotations

import contextlib
import gc
import inspect
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GenerationMixin

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.common.files import whole
from lorakit.engines import protocol
from lorakit.engines.torch import variants
from lorakit.engines.torch.adapter import frozen_encoders, stacks
from lorakit.engines.torch.kernels import attention, half_products, lora, loss, products
from lorakit.engines.torch.kernels import device as devices
from lorakit.engines.torch.kernels.adapted import adapters_changed
from lorakit.engines.torch.kernels.device import flush_denormals, pad_multiple
from lorakit.engines.torch.layers import full, recompute
from lorakit.engines.torch.optimizers import make_optimizer
from lorakit.engines.torch.out_of_memory import out_of_memory
from lorakit.engines.torch.transfer import to_device
from lorakit.machine import hardware
from lorakit.machine.distributed import World
from lorakit.models import base_model
from lorakit.run import Run
from lorakit.tasks import objectives
from lorakit.tasks.batches import Batch

TRIAL = 24  # tokens of a document whose logits are compared
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """See `protocol.Engine`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        run: Run,
        where: torch.device,
        packable: bool,
        world: World,
        idle: int = 0,
        notes: dict[str, tuple[Any, str]] | None = None,
        processor: Any = None,
        classes: int = 0,
    ):
        """`idle`: resident bytes before the model was loaded; `notes`: choices made until then; `classes`: how many
        there are to tell apart, 0 where words are learnt."""
        self.model, self.tokenizer, self.device = model, tokenizer, where
        self.processor, self.classes = processor, classes
        self.objective, self.options = (
            (objectives.get("labels"), {}) if classes else tasks.objective_for(run)
        )
        self.clip, self.method = run.max_grad_norm, run.method
        self.pad_id = tokenizer.pad_token_id if tokenizer else 0
        text = model.config.get_text_config(decoder=True)
        self.positions = getattr(text, "max_position_embeddings", None) or getattr(
            text, "max_target_positions", None
        )
        self.arguments = inspect.signature(self._bare().forward).parameters
        self.words = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        spec = base_model.spec(run.model)
        self.drops_last = spec.drops_last
        self.frozen_encoders = [
            self._bare().get_submodule(name) for name in frozen_encoders(self._bare())
        ]
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            parameter.data = parameter.data.float()
        plain = run.precision == "fp32" or half_products.asked_for(
            run.precision, run.method, spec.fp16
        )
        self.autocast = None if plain else DTYPES[run.precision]
        self.optimizer = make_optimizer(run, self.trained) if self.trained else None
        self.scaler = torch.amp.GradScaler(where.type, enabled=self.autocast == torch.float16)
        self.scaler.scale(
            torch.zeros((), device=where)
        )  # has its state now, also where the first update has no row for this process
        # Keeps summed losses in fp16's range; a power of two, so that in fp32 nothing is rounded.
        self.unit = 2.0 ** round(math.log2(int(run.micro_batch_tokens)))
        self.norm: float | None = None  # of the accumulated gradients, from `reduce` on
        self.idle = idle
        self.targets_trained = 0
        self.pending: list[Batch] = []  # the micro-batches since the last update
        self.recomputed: bool | int | str = run.gradient_checkpointing
        self.limit: int | None = None  # tokens at a time
        self.offload, self.steps = run.offload is True, list[str]()  # steps down taken
        self.world, self.sharded = world, run.shard and world.size > 1
        self.share = (0, 1) if self.sharded else (world.rank, world.size)
        self.keeps_logits = "logits_to_keep" in self.arguments
        self.notes: dict[str, tuple[Any, str]] = dict(notes or {})
        if where.type == "cpu":
            self.notes["threads"] = threads(model, run)
        self.packing = bool(run.packing)
        if self.packing:
            self.packing, words = self._isolates(packable, run.max_length)
            self.notes["packing"] = (self.packing, words)
        self.run = run
        self.noise = variants.Noise(model, run.neftune_alpha) if run.neftune_alpha else None
        moved = run.method == "lora" and run.adapter_init in variants.MOVES_BASE
        self.initial = self.weights() if moved and self.trained else {}
        self.head = None if classes else self._find_head()
        self.training_peak = self.generation_peak = 0  # bytes
        self._forget_peak()  # loading and the trials have held more

    @property
    def _optimizer(self) -> Any:
        assert self.optimizer is not None, "nothing is trained"
        return self.optimizer

    def _bare(self) -> Any:
        return self.model.get_base_model() if self.method == "lora" else self.model

    def _isolates(self, packable: bool, max_length: int) -> tuple[bool, str]:
        """Whether a document in a pack is what it is alone in the padded form: tried out, not believed."""
        if not packable:
            return False, "padded: this model's attention has no form over packs here"
        config = self._bare().config.get_text_config()
        window = max(
            getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")
        )
        length = min(
            max_length, TRIAL + (window if max_length > window else 0)
        )  # past the window, where rows get there
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        low, high, second = np.random.default_rng(0).integers(0, vocabulary, (3, length))
        # How many tokens an expert gets decides how its product is rounded, and that may send a token elsewhere.
        experts = bool(stacks(self.model))
        with self._evaluating(), torch.no_grad():
            plain = self._last(second, packed=False)
            try:
                packed = self._last(low, second, packed=True)
                crosses = (
                    self._crosses(low[:TRIAL], second[:TRIAL])
                    if experts
                    else not torch.equal(packed, self._last(high, second, packed=True))
                )
            except (TypeError, ValueError, RuntimeError) as error:
                if out_of_memory(error):  # says nothing about the model
                    raise
                return False, f"padded: this model does not run over packs ({error})"
        if crosses:
            return False, protocol.CROSSES
        apart = (packed - plain).abs().amax(1)
        exact = self.autocast is None and self.model.dtype == torch.float32
        noise = (1e-3 if exact else 0.1) * max(1.0, plain.abs().max().item())
        if (apart.median() if experts else apart.max()) > noise:
            return False, protocol.DIFFERS
        return True, protocol.ISOLATED

    def _last(self, *documents: np.ndarray, packed: bool) -> torch.Tensor:
        """(TRIAL, V) logits at the end of the last of documents of one length, less where they are shorter."""
        number, length, self.packing = len(documents), len(documents[0]), packed
        targets = np.zeros(number * length, dtype=bool)
        targets[-min(TRIAL, length - 1) :] = True
        ids = np.concatenate(documents)
        return self._logits(Batch(ids, targets, np.full(number, length), np.arange(number))).float()

    def _crosses(self, *documents: np.ndarray) -> bool:
        """Whether in a pack of two the second depends on the first: by its gradient, which rounding leaves zero."""
        seen: list[torch.Tensor] = []

        def leaf(module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
            seen.append(out.detach().requires_grad_())
            return seen[-1]

        hook = self.model.get_input_embeddings().register_forward_hook(leaf)
        try:
            with torch.enable_grad():
                logits = self._last(*documents, packed=True)
                (gradient,) = torch.autograd.grad(logits.square().sum(), seen[0])
        finally:
            hook.remove()
        return bool(gradient[0, : len(documents[0])].any())

    @contextlib.contextmanager
    def _evaluating(self):
        training = self.model.training
        self.model.eval()
        try:
            with self._precision(), flush_denormals():
                yield
        finally:
            self.model.train(training)

    def _precision(self):
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _find_head(self) -> dict[str, Any] | None:
        """What `kernels.loss` needs to stand for the model's own head; None where its logits differ: tried out."""
        config, layer = (
            self._bare().config.get_text_config(decoder=True),
            self._bare().get_output_embeddings(),
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
        with torch.no_grad(), self._evaluating():
            try:
                mine, own = loss.logits(self._hidden(batch), **head), self._logits(batch).float()
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                if out_of_memory(error):
                    raise
                return None
        return (
            head
            if torch.allclose(mine, own, rtol=0.02, atol=0.02 * float(own.abs().max()))
            else None
        )

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(K, H): what the head sees where it predicts the K targets."""
        return self._forward(
            getattr(self._bare(), self._bare().base_model_prefix), batch, "last_hidden_state"
        )

    def _logits(self, batch: Batch) -> torch.Tensor:
        """(K, V) logits that predict the K targets, in the batch's order."""
        return self._forward(self.model, batch, "logits")

    def _forward(self, model: Any, batch: Batch, wanted: str) -> torch.Tensor:
        places = np.flatnonzero(batch.targets)
        if self.packing:
            batch = batch.padded_to(pad_multiple(self.device, self.autocast))
            ends = np.append(0, np.cumsum(batch.lengths))
            ids = batch.ids
            there = to_device(
                self.device,
                ids=ids,
                position=batch.positions,
                before=places - 1,
                ends=ends,
            )
            before = there["before"]
            keep = {"logits_to_keep": before} if self.keeps_logits and wanted == "logits" else {}
            with attention.packed():
                out = model(
                    input_ids=there["ids"][None],
                    # without one transformers waits for the card to see whether this is a pack
                    attention_mask=torch.ones(1, len(ids), dtype=torch.bool, device=self.device),
                    position_ids=there["position"][None],
                    use_cache=False,
                    documents=attention.Documents(
                        batch.lengths, self.device, ends=there["ends"].int()
                    ),
                    **keep,
                )[wanted][0]
            # some models pay no heed to logits_to_keep
            return out if len(out) == len(places) else out[before]
        before = batch.positions[places] - 1
        kept, where = np.unique(before, return_inverse=True)
        there = to_device(
            self.device, document=batch.documents[places], before=before, kept=kept, where=where
        )
        keep = {}
        if self.keeps_logits and wanted == "logits" and len(batch.ids):
            keep = {"logits_to_keep": there["kept"]}
        out = model(**self._padded(batch), use_cache=False, **keep)[wanted]
        shortened = keep and out.shape[1] == len(kept)  # else it pays no heed to logits_to_keep
        return out[there["document"], there["where" if shortened else "before"]]

    def _padded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Every document in a line of its own, beside its pictures or its sound."""
        given = self._media(batch.media)
        if not len(batch.ids):
            return given
        shape = (len(batch.lengths), int(batch.lengths.max()))  # (D, T)
        ids, mask = np.full(shape, self.pad_id), np.zeros(shape, dtype=np.int64)
        ids[batch.documents, batch.positions], mask[batch.documents, batch.positions] = batch.ids, 1
        return self._words(torch.from_numpy(ids), torch.from_numpy(mask)) | given

    def _words(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tokens (D, T) under the names that the model gives them; which stand for a picture, where it asks."""
        given = {self.words: ids, self.words.replace("input_ids", "attention_mask"): mask}
        picture = getattr(self.model.config, "image_token_id", None)
        if picture is not None:
            given |= {
                name: (ids == picture).long()
                for name in ("token_type_ids", "mm_token_type_ids")
                if name in self.arguments
            }
        return {name: value.to(self.device) for name, value in given.items()}

    def _media(self, media: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
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
            value = torch.cat(parts).to(self.device)
            wide = self.model.dtype if self.autocast else torch.float32
            out[name] = value.to(wide) if value.is_floating_point() else value
        return out

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The sum over the targets, in nats."""
        if self.objective.NEEDS == "class_logits":
            labels = torch.from_numpy(batch.values["label"]).to(self.device)
            return F.cross_entropy(self._class_logits(batch), labels, reduction="sum")
        if self.objective.NEEDS == "document_logps":
            values = {
                n: torch.from_numpy(np.asarray(v, np.float32)).to(self.device)
                for n, v in batch.values.items()
            }
            logps = -self._document_losses(batch)
            assert self.objective.losses
            return self.objective.losses(torch, logps, values, self.options).sum()
        target_ids = self._target_ids(batch)
        if self.head is None:
            logits = self._logits(batch).float()
            if batch.weights is None:
                return F.cross_entropy(logits, target_ids, reduction="sum")
            weights = torch.from_numpy(batch.weights[batch.targets]).to(self.device)
            return (F.cross_entropy(logits, target_ids, reduction="none") * weights).sum()
        hidden = self._hidden(batch)
        if batch.weights is None:
            return loss.linear_cross_entropy(hidden, target_ids=target_ids, **self.head)
        # A few distinct weights: each is a factor of the sum over its targets.
        weights, parts = batch.weights[batch.targets], []
        for weight in np.unique(weights):
            chosen = to_device(self.device, at=np.flatnonzero(weights == weight))["at"]
            part = loss.linear_cross_entropy(
                hidden[chosen], target_ids=target_ids[chosen], **self.head
            )
            parts.append(float(weight) * part)
        return torch.stack(parts).sum()

    def _target_ids(self, batch: Batch) -> torch.Tensor:
        return to_device(self.device, ids=batch.ids[batch.targets])["ids"]

    def _document_losses(self, batch: Batch) -> torch.Tensor:
        """(D,) summed losses of the documents' targets, in nats, each with a gradient of its own."""
        target_ids, count = self._target_ids(batch), len(batch.lengths)
        document = to_device(self.device, at=batch.documents[batch.targets])["at"]
        if self.head is not None:
            return loss.document_losses(
                self._hidden(batch),
                target_ids=target_ids,
                document=document,
                count=count,
                **self.head,
            )
        losses = F.cross_entropy(self._logits(batch).float(), target_ids, reduction="none")
        return losses.new_zeros(count).index_add(0, document, losses)

    def _class_logits(self, batch: Batch) -> torch.Tensor:
        """(D, C) in fp32."""
        return self.model(**self._padded(batch))["logits"].float()

    def backward(self, batch: Batch) -> tuple[float | torch.Tensor, int]:
        if batch.idle and not self.sharded:
            return 0.0, 0
        self.pending.append(batch)
        try:
            return self._backward(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # outside of that clause the failed graph is free
        while True:
            self._step_down()
            try:
                return [self._backward(again) for again in self.pending][-1]
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise

    def _backward(self, batch: Batch) -> tuple[float | torch.Tensor, int]:
        with flush_denormals():
            return self._accumulate(batch)

    def _accumulate(self, batch: Batch) -> tuple[float | torch.Tensor, int]:
        self.model.train()
        for encoder in self.frozen_encoders:
            encoder.eval()
        summed: float | torch.Tensor = 0.0
        on_card = devices.capability(self.device) is not None  # stays there until `reduce`
        for part in batch.parts(self.limit):
            torch.manual_seed(part.seed)
            keep = (
                torch.autograd.graph.save_on_cpu(self.device.type == "cuda")
                if self.offload
                else None
            )
            with self._precision(), keep or contextlib.nullcontext(), self._noised(part):
                total = self._loss(part) * (0.0 if part.idle else 1.0)
            self.scaler.scale(total / self.unit).backward()
            summed = summed + (total.detach() if on_card else float(total.detach()))
        return summed, batch.count

    @contextlib.contextmanager
    def _noised(self, batch: Batch) -> Iterator[None]:
        """Inside, NEFTune adds noise to the embeddings of these documents, where the run asks for it."""
        if self.noise is None:
            yield
            return
        self.noise.batch, self.noise.packed = batch, self.packing
        try:
            yield
        finally:
            self.noise.batch = None

    def _step_down(self) -> None:
        """Out of memory: what was accumulated is dropped, and the next rung makes the same update in less."""
        longest, most = (max(int(f(b.row_tokens)) for b in self.pending) for f in (np.max, np.sum))
        if self.sharded:
            raise LorakitError(
                f"out of memory with {most} tokens at a time, and processes that share the weights have "
                "to keep step; lower micro_batch_tokens and start again: the run goes on"
            )
        if most > longest and (self.limit is None or self.limit > longest):
            self.limit = max(longest, min(most, self.limit or most) // 2)
            step = f"at most {self.limit} tokens at a time"
        elif self.recomputed is not True:
            self.recomputed = recompute(self.model, True)
            step = "activations recomputed"
        elif not self.offload:
            self.offload, step = True, "activations kept in the host's memory"
        else:
            raise LorakitError(
                f"out of memory with one row of {longest} tokens, recomputed and offloaded; lower "
                "max_length or rank, or take a smaller model"
            )
        self.steps.append(step)
        self._optimizer.zero_grad(set_to_none=True)
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def first_nonfinite_layer(self, batches: list[Batch]) -> str:
        """The first module whose output is not finite, or whose output's gradient is not, in the order of a pass."""
        found: list[str] = []

        def look(name: str, what: str):
            def hook(module: Any, _: Any, values: Any) -> None:
                values = values if isinstance(values, (tuple, list)) else [values]
                if not found and any(
                    torch.is_tensor(v) and v.is_floating_point() and not v.isfinite().all()
                    for v in values
                ):
                    found.append(f"{what} {name}")

            return hook

        leaves = [(n, m) for n, m in self.model.named_modules() if not list(m.children())]
        hooks = [
            m.register_forward_hook(look(n, "the first layer that overflows is")) for n, m in leaves
        ]
        hooks += [
            m.register_full_backward_hook(look(n, "the gradient overflows first behind"))
            for n, m in leaves
        ]
        head, self.head = self.head, None
        try:
            with lora.as_peft():
                for part in (part for batch in batches for part in batch.parts(1)):
                    self._backward(part)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._free()
            found = found or ["there was no memory to look for the layer that overflows"]
        finally:
            self.head = head
            for hook in hooks:
                hook.remove()
            self._optimizer.zero_grad(set_to_none=True)
        return found[0] if found else "no layer overflows by itself"

    @torch.no_grad()
    def reduce(self, total: float | torch.Tensor, count: int) -> tuple[float, int]:
        """One wait for the device an update: the sum and the gradients' norm come back together."""
        if self.world.size > 1:
            self._reduce_gradients()
        both = [torch.as_tensor(total, device=self.device).float(), self._gradient_norm()]
        total, self.norm = torch.stack(both).tolist()
        if self.world.size == 1:
            return total, count
        sums = torch.tensor([total, count], dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return float(sums[0]), int(sums[1])

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for p in self.trained.values() if p.grad is not None]

    def _gradient_norm(self) -> torch.Tensor:
        """Of the summed gradients, unscaled, on the device."""
        self.scaler.unscale_(self.optimizer)
        gradients = self._gradients()
        if any(hasattr(g, "full_tensor") for g in gradients):
            norms = [full(torch.linalg.vector_norm(g)) for g in gradients]
        else:
            norms = list(torch._foreach_norm(gradients))
        return torch.linalg.vector_norm(torch.stack(norms))

    def _reduce_gradients(self) -> None:
        whole = [p for p in self.trained.values() if not hasattr(p, "full_tensor")]
        for parameter in self.trained.values():
            if parameter.grad is not None and hasattr(parameter, "full_tensor"):
                parameter.grad.mul_(self.world.size)  # FSDP has made it a mean
        for parameter in whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if whole:
            flat = torch.cat([p.grad.flatten() for p in whole])
            torch.distributed.all_reduce(flat)
            for parameter, summed in zip(
                whole, flat.split([p.numel() for p in whole]), strict=True
            ):
                parameter.grad.copy_(summed.view_as(parameter))

    def gather(self, value: Any) -> list[Any]:
        return self.world.gather(value)

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("ratio", 1.0)
        share = self.unit / max(count, 1)
        norm = share * (float(self._gradient_norm()) if self.norm is None else self.norm)
        if self.clip is not None and math.isfinite(norm):
            share *= min(1.0, self.clip / (norm + 1e-6))
        torch._foreach_mul_(self._gradients(), share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        adapters_changed()
        self.norm = None
        self.targets_trained += sum(b.count for b in self.pending)
        self.pending.clear()
        return norm, self.scaler.is_enabled() and not math.isfinite(norm)

    def loss(self, batch: Batch) -> tuple[float, int]:
        return protocol.summed_loss(self.predict(batch))

    def predict(self, batch: Batch) -> np.ndarray:
        try:
            return self._predict(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self.sharded or len(batch.starts) == 1:
                raise LorakitError(
                    f"out of memory with one row of {len(batch.ids)} tokens; lower max_length"
                ) from None
        self._free()
        return np.concatenate([self.predict(part) for part in batch.parts(len(batch.ids) // 2)])

    @torch.no_grad()
    def _predict(self, batch: Batch) -> np.ndarray:
        if self.objective.NEEDS == "class_logits":
            return self._predict_labels(batch)
        scores = self._score_documents(batch)
        if self.objective.NEEDS == "document_logps":
            assert self.objective.statistics
            return self.objective.statistics(scores, batch.values, self.options)
        return scores

    def score_documents(self, batch: Batch) -> np.ndarray:
        with torch.no_grad():
            return self._score_documents(batch)

    def _score_documents(self, batch: Batch) -> np.ndarray:
        """(D, 3)"""
        target_ids = self._target_ids(batch)
        with self._evaluating():
            if self.head is None:
                logits = self._logits(batch).float()
                losses, right = (
                    F.cross_entropy(logits, target_ids, reduction="none"),
                    logits.argmax(-1) == target_ids,
                )
            else:
                losses, right = loss.scores(self._hidden(batch), target_ids=target_ids, **self.head)
        losses, right = losses.double().cpu().numpy(), right.cpu().numpy()
        return protocol.per_document(batch, losses, right)

    def _predict_labels(self, batch: Batch) -> np.ndarray:
        """(D, 3 + C)"""
        with self._evaluating():
            logits = self._class_logits(batch).double().cpu()
        unknown = np.zeros(len(logits), dtype=np.int64)  # of a question
        labels = torch.from_numpy(batch.values.get("label", unknown))
        losses, right = (
            F.cross_entropy(logits, labels, reduction="none"),
            logits.argmax(-1) == labels,
        )
        return torch.column_stack(
            [losses, torch.ones_like(losses), right, logits.softmax(-1)]
        ).numpy()

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]] = (),
    ) -> list[list[int]]:
        try:
            with self._measured_apart():
                return self._generate(prompts, max_new_tokens, stop_ids, media)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self.sharded or len(prompts) == 1:
                raise LorakitError(
                    f"out of memory while answering a prompt of {len(prompts[0])} tokens; lower "
                    "max_new_tokens or max_length"
                ) from None
        self._free()
        half = len(prompts) // 2
        return [
            a
            for some in (slice(None, half), slice(half, None))
            for a in self.generate(prompts[some], max_new_tokens, stop_ids, media[some])
        ]

    @torch.no_grad()
    def _generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]],
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        max_new_tokens = protocol.new_tokens_that_fit(width, max_new_tokens, self.positions)
        unread = [self.pad_id] * self.drops_last
        ends = {} if unread else {"eos_token_id": stop_ids or None, "pad_token_id": self.pad_id}
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + p + unread for p in prompts])
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * (len(p) + len(unread)) for p in prompts]
        )
        # Models that hear have a `generate` of their own, which decides about language and length.
        generate = (
            partial(GenerationMixin.generate, self._bare())
            if self.model.config.is_encoder_decoder
            else self.model.generate
        )
        with (
            self._evaluating(),
            self._dense_head(),
            self._without_max_length(),
            lora.standing(),
        ):
            out = generate(
                **self._words(ids, mask),
                **self._heard(self._media(media)),
                **ends,
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

    def _heard(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With a mask over all of a spectrogram (B, bands, frames): transformers warns that it cannot infer one."""
        if "input_features" not in given or not self.model.config.is_encoder_decoder:
            return given
        frames = given["input_features"]
        every = torch.ones(len(frames), frames.shape[-1], dtype=torch.long, device=frames.device)
        return {"attention_mask": every} | given

    @contextlib.contextmanager
    def _without_max_length(self) -> Iterator[None]:
        """Inside, `max_new_tokens` alone limits answers; transformers warns where the model's files limit them too."""
        settings = getattr(self._bare(), "generation_config", None)
        given = getattr(settings, "max_length", None)
        if given is not None:
            settings.max_length = None
        try:
            yield
        finally:
            if given is not None:
                settings.max_length = given

    @contextlib.contextmanager
    def _dense_head(self):
        """Inside, the head sees the last places in one piece: torch copies its weights for each row of a slice."""
        head = self._bare().get_output_embeddings()
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

    def memory(self) -> int:
        return max(self.training_peak, self._peak())

    def generation_memory(self) -> int:
        return self.generation_peak

    def _peak(self) -> int:
        """Bytes since `_forget_peak`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return max(0, hardware.peak_resident() - self.idle)

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        hardware.forget_peak()

    @contextlib.contextmanager
    def _measured_apart(self):
        """What generation takes within this block is not training's."""
        self.training_peak = self.memory()
        self._forget_peak()
        try:
            yield
        finally:
            self.generation_peak = max(self.generation_peak, self._peak())
            self._forget_peak()

    def parameters(self) -> dict[str, tuple[int, bool]]:
        def size(parameter: torch.nn.Parameter) -> int:
            state = getattr(parameter, "quant_state", None)
            return int(np.prod(state.shape)) if state is not None else parameter.numel()

        return {n: (size(p), p.requires_grad) for n, p in self.model.named_parameters()}

    def fingerprint(self) -> dict[str, int]:
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        spread = {n for n, t in tensors if hasattr(t, "full_tensor")}
        sums = {
            n: int(
                getattr(t, "_local_tensor", t)
                .detach()
                .contiguous()
                .view(whole[t.element_size()])
                .sum(dtype=torch.int64)
            )
            for n, t in tensors
        }
        each = self.gather(sums) if spread else [sums]
        return {n: sum(s[n] for s in each) if n in spread else mine for n, mine in sums.items()}

    def weights(self) -> dict[str, np.ndarray]:
        return {n: full(p.detach()).cpu().numpy().copy() for n, p in self.trained.items()}

    @torch.no_grad()
    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        protocol.require_same_tensors(tensors, {n: p.shape for n, p in self.trained.items()})
        for name, parameter in self.trained.items():
            parameter.copy_(self._spread(torch.from_numpy(tensors[name]), parameter))
        adapters_changed()

    def _spread(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """On the device, and over the processes where `like` is."""
        if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
            return tensor.to(self.device)
        return torch.distributed.tensor.distribute_tensor(
            tensor.to(self.device), like.device_mesh, like.placements
        )

    def state(self) -> dict[str, np.ndarray]:
        out = {f"weight/{n}": w for n, w in self.weights().items()}
        for name, parameter in self.trained.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                value = (
                    full(value.detach()).cpu().numpy()
                    if torch.is_tensor(value)
                    else np.asarray(value)
                )
                out[f"optimizer/{name}/{key}"] = value
        return out | {f"scaler/{k}": np.asarray(v) for k, v in self.scaler.state_dict().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.set_weights(protocol.tensors_in(state, "weight"))
        for name, parameter in self.trained.items():
            if kept := protocol.tensors_in(state, f"optimizer/{name}"):
                self._optimizer.state[parameter] = {
                    k: self._optimizer_value(k, v, parameter) for k, v in kept.items()
                }
        if scaler := {k: v.item() for k, v in protocol.tensors_in(state, "scaler").items()}:
            self.scaler.load_state_dict(scaler)

    def _optimizer_value(self, key: str, value: np.ndarray, parameter: torch.Tensor) -> Any:
        if key == "step":  # a tensor for torch, a number for bitsandbytes
            if not isinstance(self.optimizer, torch.optim.AdamW):
                return int(value)
            return torch.tensor(value, device=self.optimizer.state[parameter]["step"].device)
        return self._spread(torch.from_numpy(value.copy()), parameter)

    def save(self, path: Path) -> Path:
        options: dict[str, Any] = {"save_embedding_layers": False} if self.method == "lora" else {}
        if self.sharded and self.method == "full":
            options = {"state_dict": {n: full(t).cpu() for n, t in self.model.state_dict().items()}}
        if not self.world.first:
            return Path(path)
        with whole(Path(path)) as part:
            for config in getattr(self.model, "peft_config", {}).values():
                config.base_model_name_or_path = absolute(config.base_model_name_or_path)
            self.model.save_pretrained(part, **options)
            if self.initial:
                variants.as_plain_lora(part, self.initial, self.run)
            if self.method == "lora" and self.objective.HEAD == "labels":
                self.model.config.save_pretrained(part)  # PEFT leaves id2label out
            for reader in filter(None, (self.processor, self.tokenizer)):
                reader.save_pretrained(part)
        return Path(path)

    def close(self) -> None:
        self.trained, self.optimizer, self.model = {}, None, None
        self.head, self.frozen_encoders = None, []
        products.forget()
        self._free()


def absolute(model: str | None) -> str | None:
    """A local folder's absolute path, by which plain PEFT finds the base from any working folder; a hub id as it is."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def threads(model: Any, run: Run) -> tuple[int, str]:
    """Sets and returns how many threads compute. Small products are over before a second thread has begun."""
    tokens = min(run.micro_batch_tokens, run.micro_batch_size * run.max_length)
    work = 2 * sum(p.numel() for p in model.parameters()) * tokens
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads(), "OMP_NUM_THREADS says so"
    if work < 1e10:
        torch.set_num_threads(1)
        return 1, f"a pass is {work / 1e9:.1f} GFLOP: too little to share"
    return torch.get_num_threads(), "all cores"
