"""The engine itself: what a loaded model computes, trains and saves."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.engines import protocol
from lorakit.engines.torch import generation, nonfinite, packing_trial, variants
from lorakit.engines.torch.adapter import frozen_encoders
from lorakit.engines.torch.kernels import device as devices
from lorakit.engines.torch.kernels import half_products, lora, products
from lorakit.engines.torch.kernels.device import flush_denormals
from lorakit.engines.torch.layers import full, recompute
from lorakit.engines.torch.losses import Losses
from lorakit.engines.torch.optimization import Optimization
from lorakit.engines.torch.out_of_memory import out_of_memory
from lorakit.engines.torch.passes import Passes
from lorakit.engines.torch.peak_memory import PeakMemory
from lorakit.machine.distributed import World
from lorakit.models import base_model
from lorakit.run import Run
from lorakit.tasks import objectives
from lorakit.tasks.batches import Batch

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
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.device, self.method, self.world = where, run.method, world
        self.sharded = run.shard and world.size > 1
        self.share = (0, 1) if self.sharded else (world.rank, world.size)
        self.objective, options = (
            (objectives.get("labels"), {}) if classes else tasks.objective_for(run)
        )
        text = model.config.get_text_config(decoder=True)
        self.positions = getattr(text, "max_position_embeddings", None) or getattr(
            text, "max_target_positions", None
        )
        spec = base_model.spec(run.model)
        self.drops_last = spec.drops_last
        bare = self._bare()
        self.frozen_encoders = [bare.get_submodule(name) for name in frozen_encoders(bare)]
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            parameter.data = parameter.data.float()
        half = half_products.asked_for(run.precision, run.method, spec.fp16)
        autocast = None if run.precision == "fp32" or half else DTYPES[run.precision]
        self.passes = Passes(
            model, bare, where, autocast, tokenizer.pad_token_id if tokenizer else 0
        )
        self.optimization = Optimization(run, self.trained, where, world, autocast)
        self.run = run
        self.noise = variants.Noise(model, run.neftune_alpha) if run.neftune_alpha else None
        moved = run.method == "lora" and run.adapter_init in variants.MOVES_BASE
        self.initial = self.weights() if moved and self.trained else {}
        self.targets_trained = 0
        self.pending: list[Batch] = []  # the micro-batches since the last update
        self.recomputed: bool | int | str = run.gradient_checkpointing
        self.limit: int | None = None  # tokens at a time
        self.offload, self.steps = run.offload is True, list[str]()  # steps down taken
        self.notes: dict[str, tuple[Any, str]] = dict(notes or {})
        if where.type == "cpu":
            self.notes["threads"] = threads(model, run)
        self._try_packs(run, packable)
        self.losses = Losses(self.passes, self.objective, options)
        self.peak = PeakMemory(where, idle)

    def _try_packs(self, run: Run, packable: bool) -> None:
        passes = self.passes
        if run.packing:
            self.notes["packing"] = (
                packing_trial.isolates(passes, run.max_length)
                if packable
                else (False, "padded: this model's attention has no form over packs here")
            )
            passes.packing = self.notes["packing"][0]
        if self.objective.NEEDS == "document_logps" and not run.neftune_alpha:
            self.notes["prompts"] = packing_trial.shares(passes, run.max_length)
            passes.shares = self.notes["prompts"][0]

    @property
    def packing(self) -> bool:
        return self.passes.packing

    def _bare(self) -> Any:
        return self.model.get_base_model() if self.method == "lora" else self.model

    @torch.no_grad()
    def begin_with(self, batches: Sequence[Batch]) -> None:
        with lora.as_peft(), self.passes.evaluating():
            first = variants.directions(self.model, self.passes.hidden, self.run.rank, batches)
        self.set_weights(self.weights() | {n: a.cpu().numpy() for n, a in first.items()})

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
        self.model.train()
        self.optimization.training(True)
        for encoder in self.frozen_encoders:
            encoder.eval()
        summed: float | torch.Tensor = 0.0
        on_card = devices.capability(self.device) is not None  # stays there until `reduce`
        with flush_denormals():
            for part in batch.parts(self.limit):
                torch.manual_seed(part.seed)
                keep = (
                    torch.autograd.graph.save_on_cpu(self.device.type == "cuda")
                    if self.offload
                    else contextlib.nullcontext()
                )
                noise = (
                    self.noise.on(part, self.packing) if self.noise else contextlib.nullcontext()
                )
                with self.passes.precision(), keep, noise:
                    total = self.losses.summed(part) * (0.0 if part.idle else 1.0)
                self.optimization.add(total)
                summed = summed + (total.detach() if on_card else float(total.detach()))
        return summed, batch.count

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
        self.optimization.drop_gradients()
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def first_nonfinite_layer(self, batches: list[Batch]) -> str:
        """The first module whose output is not finite, or whose output's gradient is not, in the order of a pass."""
        head, self.losses.head = self.losses.head, None
        try:
            with lora.as_peft(), nonfinite.watch(self.model) as found:
                for part in (part for batch in batches for part in batch.parts(1)):
                    self._backward(part)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._free()
            found = found or ["there was no memory to look for the layer that overflows"]
        finally:
            self.losses.head = head
            self.optimization.drop_gradients()
        return found[0] if found else "no layer overflows by itself"

    def reduce(self, total: float | torch.Tensor, count: int) -> tuple[float, int]:
        return self.optimization.reduce(total, count)

    def gather(self, value: Any) -> list[Any]:
        return self.world.gather(value)

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        outcome = self.optimization.update(learning_rate, count)
        self.targets_trained += sum(b.count for b in self.pending)
        self.pending.clear()
        return outcome

    def loss(self, batch: Batch) -> tuple[float, int]:
        return protocol.summed_loss(self.predict(batch))

    def predict(self, batch: Batch) -> np.ndarray:
        try:
            return self.losses.predict(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self.sharded or len(batch.starts) == 1:
                raise LorakitError(
                    f"out of memory with one row of {len(batch.ids)} tokens; lower max_length"
                ) from None
        self._free()
        return np.concatenate([self.predict(part) for part in batch.parts(len(batch.ids) // 2)])

    def score_documents(self, batch: Batch) -> np.ndarray:
        return self.losses.score_documents(batch)

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]] = (),
        accepts: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[list[int]]:
        try:
            with self.peak.of_generation():
                return generation.generate(
                    self.passes,
                    prompts,
                    protocol.new_tokens_that_fit(
                        max(map(len, prompts)), max_new_tokens, self.positions
                    ),
                    stop_ids,
                    media,
                    drops_last=self.drops_last,
                    accepts=accepts,
                )
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
            for a in self.generate(prompts[some], max_new_tokens, stop_ids, media[some], accepts)
        ]

    def memory(self) -> int:
        return self.peak.training

    def generation_memory(self) -> int:
        return self.peak.generation

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
        return self.optimization.weights()

    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        self.optimization.set_weights(tensors)

    def state(self) -> dict[str, np.ndarray]:
        return self.optimization.state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.optimization.restore(state)

    def save(self, path: Path) -> Path:
        options: dict[str, Any] = {"save_embedding_layers": False} if self.method == "lora" else {}
        if self.sharded and self.method == "full":
            options = {"state_dict": {n: full(t).cpu() for n, t in self.model.state_dict().items()}}
        if not self.world.first:
            return Path(path)
        with atomic_write(Path(path)) as part:
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
        self.trained, self.model, self.frozen_encoders = {}, None, []
        for part in ("passes", "losses", "optimization"):
            self.__dict__.pop(part, None)
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
