"""The engine itself: what a loaded model of mlx-lm's computes, trains and saves."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lorakit import tasks
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.engines import protocol
from lorakit.engines.mlx import adapters, generation
from lorakit.engines.mlx import loss as mlx_loss
from lorakit.engines.mlx.lora import recomputed, watched
from lorakit.engines.mlx.passes import Answering, Passes
from lorakit.engines.mlx.tensors import frozen_sizes, frozen_tensors
from lorakit.models import base_model
from lorakit.run import Run, resolved
from lorakit.tasks.batches import Batch


def as_list(targets: Sequence[str] | str) -> list[str] | str:
    """Names as a list; a regular expression stays."""
    return targets if isinstance(targets, str) else list(targets)


class MLXEngine:
    """See `lorakit.engines.Engine` for the contract."""

    share = (0, 1)

    def __init__(self, model: Any, layers: dict[str, Any], tokenizer: Any, run: Run, config: Any):
        from mlx.optimizers import AdamW

        self.processor = None
        self.objective, self.options = tasks.objective_for(run)
        self.model, self.tokenizer, self.clip = model, tokenizer, run.max_grad_norm
        self.layers, self.run = layers, run
        self.trained = {
            f"{adapters.PREFIX}{name}.lora_{key}.default.weight": layer[f"lora_{key}"]
            for name, layer in layers.items()
            for key in "AB"
        }
        # torch's AdamW: moments corrected, decay apart from the gradient. MLX's own default corrects nothing.
        self.optimizer = AdamW(
            resolved(run.learning_rate),
            eps=1e-8,
            weight_decay=run.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(self.trained)
        self.gradients: dict[str, Any] | None = None
        self.targets_trained, self.pending, self.steps = 0, 0, list[str]()
        self.training_peak = self.generation_peak = 0  # bytes
        self.notes: dict[str, tuple[Any, str]] = {}
        if run.offload is True:
            self.notes["offload"] = (False, "the GPU and the host share one memory")
        if run.compile:
            self.notes["compile"] = (False, "MLX compiles whole steps, whatever is asked for")
        window = getattr(config, "sliding_window", None) or 0
        length = min(run.max_length, 24 + (window if run.max_length > window else 0))
        self.passes = Passes(model, run, config, tokenizer.pad_token_id)
        # Rotary positions: rows may begin anywhere, so answers can be given together.
        self.relative, reason = self.passes.isolates(length)
        if run.packing:
            self.notes["packing"] = (self.relative, reason)
        self.passes.packing = self.relative and bool(run.packing)
        self.limit: int | None = None  # tokens at a time
        self.recomputes: bool | int = False
        self._compile(
            recompute=False if run.gradient_checkpointing == "auto" else run.gradient_checkpointing
        )
        self._compiled_sums: Any = mx.compile(self._sums)
        self._stepped: Any = mx.compile(
            self._step, inputs=self.optimizer.state, outputs=self.optimizer.state
        )

    @property
    def packing(self) -> bool:
        return self.passes.packing

    @contextlib.contextmanager
    def _holding(self, tensors: dict[str, Any], key: Any = None) -> Iterator[None]:
        """The layers compute with these tensors and this dropout; afterwards with their own and none."""
        self._put(tensors, None if key is None else mx.random.split(key, len(self.layers)))
        try:
            yield
        finally:
            self._put(self.trained, None)

    def _put(self, tensors: dict[str, Any], keys: Any) -> None:
        for i, (name, layer) in enumerate(self.layers.items()):
            layer.lora_A, layer.lora_B = (
                tensors[f"{adapters.PREFIX}{name}.lora_{k}.default.weight"] for k in "AB"
            )
            layer._key = None if keys is None else keys[i]

    def _summed(
        self,
        tensors: dict,
        ids: Any,
        document: Any,
        places: Any,
        answers: Any,
        weight: Any,
        key: Any,
    ) -> Any:
        with self._holding(tensors, key):
            hidden = self.passes.hidden(ids, document)[places]
            return mlx_loss.summed(
                self.passes.head, hidden, answers, weight, self.passes.vocabulary
            )

    def _documents_summed(
        self,
        tensors: dict,
        ids: Any,
        document: Any,
        places: Any,
        answers: Any,
        weight: Any,
        of_target: Any,
        values: dict,
        key: Any,
    ) -> Any:
        """The loss of documents; `of_target` (K,): the document that a target is in, `values`: (D,) each."""
        with self._holding(tensors, key):
            hidden = self.passes.hidden(ids, document)[places]
            count = len(values["length"])
            losses = mlx_loss.per_document(
                self.passes.head, hidden, answers, weight, of_target, count, self.passes.vocabulary
            )
        assert self.objective.losses
        return self.objective.losses(mx, -losses, values, self.options).sum()

    def _sums(
        self, tensors: dict, ids: Any, document: Any, places: Any, answers: Any, _: Any
    ) -> tuple[Any, Any]:
        """(K,) nats, (K,) whether the largest logit is the answer's."""
        with self._holding(tensors):
            hidden, step = (
                self.passes.hidden(ids, document)[places],
                max(1, mlx_loss.ROOM // self.passes.vocabulary),
            )
            found = []
            for k in range(0, len(places), step):
                logits = self.passes.head(hidden[k : k + step])
                found.append(
                    (
                        mlx_loss.per_target(logits, answers[k : k + step]),
                        mx.argmax(logits, axis=-1) == answers[k : k + step],
                    )
                )
            losses, right = zip(*found, strict=True)
            return mx.concatenate([*losses]), mx.concatenate([*right])

    # Training

    def _compile(self, recompute: bool | int) -> None:
        done, self.recomputes = int(self.recomputes), recompute
        for layer in self.model.layers[done : None if recompute is True else recompute]:
            recomputed(layer)
        of_documents = self.objective.NEEDS == "document_logps"
        loss = self._documents_summed if of_documents else self._summed
        self._gradients: Any = mx.compile(mx.value_and_grad(loss))

    def backward(self, batch: Batch) -> tuple[float, int]:
        parts = batch.parts(self.limit)
        if len(parts) > 1:
            return sum(self.backward(part)[0] for part in parts), batch.count
        try:
            return self._backward(batch)
        except RuntimeError as error:
            if not re.search("memory|alloc", str(error), re.IGNORECASE):
                raise
        self._step_down(batch)
        return self.backward(batch)

    def _step_down(self, batch: Batch) -> None:
        """Out of memory: nothing of this batch is in the gradients yet, and the next rung computes it in less."""
        longest, most = int(batch.row_tokens.max()), len(batch.ids)
        if most > longest:
            self.limit = max(longest, most // 2)
            self.steps.append(f"at most {self.limit} tokens at a time")
        elif self.recomputes is not True:
            self._compile(recompute=True)
            self.steps.append("activations recomputed")
        else:
            raise LorakitError(
                f"out of memory with one row of {longest} tokens, recomputed; lower max_length or rank, "
                "or use quantization=affine4"
            )
        mx.clear_cache()

    def _backward(self, batch: Batch) -> tuple[float, int]:
        key = mx.random.key(batch.seed) if self.run.dropout else None
        arrays = [*self.passes.arrays(batch)]
        if self.objective.NEEDS == "document_logps":
            of_target = np.zeros(arrays[2].shape[0], dtype=np.int32)
            of_target[: int(batch.targets.sum())] = batch.documents[batch.targets]
            values = {n: mx.array(v.astype(np.float32)) for n, v in batch.values.items()}
            arrays += [mx.array(of_target), values]
        loss, gradients = self._gradients(self.trained, *arrays, key)
        if self.gradients is not None:
            gradients = {n: g + self.gradients[n] for n, g in gradients.items()}
        mx.eval(loss, gradients)
        self.gradients, self.pending = gradients, self.pending + batch.count
        return loss.item(), batch.count

    def reduce(self, total: float, count: int) -> tuple[float, int]:
        return total, count

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        assert self.gradients is not None, "no micro-batch has been computed"
        squares = [mx.square(g).sum() for g in self.gradients.values()]
        norm = float(mx.sqrt(sum(squares[1:], squares[0])).item()) / max(count, 1)  # type: ignore[arg-type]
        finite = bool(np.isfinite(norm))
        if finite:
            clip = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
            self.optimizer.learning_rate = learning_rate
            self.trained = self._stepped(
                self.trained, self.gradients, mx.array(clip / max(count, 1))
            )
            mx.eval(self.trained, self.optimizer.state)
            self._put(self.trained, None)
        self.targets_trained, self.pending, self.gradients = (
            self.targets_trained + self.pending,
            0,
            None,
        )
        mx.clear_cache()
        return norm, not finite

    def _step(self, tensors: dict, gradients: dict, factor: Any) -> dict:
        return self.optimizer.apply_gradients(
            {n: g * factor for n, g in gradients.items()}, tensors
        )

    def first_nonfinite_layer(self, batches: list[Batch]) -> str:
        """The first layer whose output is not finite; looked at eagerly, one after the other."""
        found: list[str] = []

        def look(number: int) -> Callable[[Any], None]:
            def see(out: Any) -> None:
                if not found and not mx.isfinite(out).all().item():
                    found.append(f"the first layer that overflows is layers.{number}")

            return see

        ends = [watched(layer, look(number)) for number, layer in enumerate(self.model.layers)]
        try:
            for batch in batches:
                mx.eval(self.passes.hidden(*self.passes.arrays(batch)[:2]))
        finally:
            for end in ends:
                end()
            self.gradients = None
        return found[0] if found else "no layer overflows by itself"

    # Evaluation

    def loss(self, batch: Batch) -> tuple[float, int]:
        return protocol.summed_loss(self.predict(batch))

    def predict(self, batch: Batch) -> np.ndarray:
        scores = self.score_documents(batch)
        if self.objective.NEEDS == "document_logps":
            assert self.objective.statistics
            return self.objective.statistics(scores, batch.values, self.options)
        return scores

    def score_documents(self, batch: Batch) -> np.ndarray:
        found = self._compiled_sums(self.trained, *self.passes.arrays(batch))
        losses, right = (np.array(x)[: int(batch.targets.sum())].astype(np.float64) for x in found)
        return protocol.per_document(batch, losses, right)

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]] = (),
        accepts: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[list[int]]:
        if accepts:
            raise LorakitError(
                "this engine does not hold answers to a form",
                cure="export the run and serve it with its grammar, or use another engine",
            )
        self.training_peak = self.memory()
        mx.reset_peak_memory()
        try:
            return self._generate(prompts, max_new_tokens, stop_ids)
        finally:
            self.generation_peak = max(self.generation_peak, mx.get_peak_memory())
            mx.reset_peak_memory()

    def _generate(
        self, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int]
    ) -> list[list[int]]:
        longest = max(map(len, prompts))
        max_new_tokens = protocol.new_tokens_that_fit(
            longest, max_new_tokens, self.passes.positions
        )
        # Logits in fp32: the largest of bf16 may be lost among equals once the generator has normalized them.
        model = Answering(
            self.model, lambda *args, **kwargs: self.model(*args, **kwargs).astype(mx.float32)
        )
        if self.relative:
            try:
                return generation.together(model, prompts, max_new_tokens, stop_ids)
            except ValueError:  # mlx-lm's model takes no rows of unequal length (Gemma 2)
                self.relative = False
        return [generation.alone(model, prompt, max_new_tokens, stop_ids) for prompt in prompts]

    def memory(self) -> int:
        return max(self.training_peak, mx.get_peak_memory())

    def generation_memory(self) -> int:
        return self.generation_peak

    # What it holds

    def parameters(self) -> dict[str, tuple[int, bool]]:
        return {name: (t.size, True) for name, t in self.trained.items()} | {
            n: (s, False) for n, s in frozen_sizes(self.model).items()
        }

    def fingerprint(self) -> dict[str, int]:
        whole_numbers = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
        every = frozen_tensors(self.model) | self.trained
        return {n: t.view(whole_numbers[t.dtype.size]).sum().item() for n, t in every.items()}

    def weights(self) -> dict[str, np.ndarray]:
        return {n: np.array(t) for n, t in self.trained.items()}

    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        protocol.require_same_tensors(tensors, {n: t.shape for n, t in self.trained.items()})
        self.trained = {n: mx.array(tensors[n].astype(np.float32)) for n in self.trained}
        self._put(self.trained, None)

    def state(self) -> dict[str, np.ndarray]:
        out = {f"weight/{n}": w for n, w in self.weights().items()}
        out |= {
            f"optimizer/{n}/{key}": np.array(self.optimizer.state[n][key])
            for n in self.trained
            for key in "mv"
        }
        return out | {"optimizer/step": np.asarray(self.optimizer.step.item(), dtype=np.uint64)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.set_weights(protocol.tensors_in(state, "weight"))
        for name in self.trained:  # in place: the compiled step holds on to this very dictionary
            self.optimizer.state[name].update(
                {key: mx.array(state[f"optimizer/{name}/{key}"]) for key in "mv"}
            )
        self.optimizer.state["step"] = mx.array(state["optimizer/step"].item(), dtype=mx.uint64)

    def save(self, path: Path) -> Path:
        run, weights = self.run, self.weights()
        pairs = {
            name: {
                key: weights[f"{adapters.PREFIX}{name}.lora_{key}.default.weight"] for key in "AB"
            }
            for name in self.layers
        }
        targets = (
            base_model.spec(run.model).target_modules
            if run.target_modules == "auto"
            else run.target_modules
        )
        with atomic_write(Path(path)) as part:
            adapters.write_peft(
                part,
                pairs,
                rank=run.rank,
                alpha=run.alpha,
                dropout=run.dropout,
                use_rslora=run.use_rslora,
                model=base_model.path(run.model),
                targets=None if targets == "all-linear" else as_list(targets),
            )
            self.tokenizer.save_pretrained(part)
        return Path(path)

    def close(self) -> None:
        self.trained, self.layers, self.gradients = {}, {}, None
        self.model = self.passes.text = self.optimizer = None
        self._gradients = self._compiled_sums = self._stepped = None
        mx.clear_cache()
