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
from lorakit.common.files import whole
from lorakit.engines import protocol
from lorakit.engines.mlx import convert
from lorakit.engines.mlx import loss as mlx_loss
from lorakit.engines.mlx.lora import recomputed, watched
from lorakit.engines.mlx.rows import Isolated, Rows, rounded
from lorakit.models import base_model
from lorakit.run import Run
from lorakit.tasks.batches import Batch

BODIES = ("model", "transformer", "backbone")  # what mlx-lm's models call all before the head


def transformers_name(path: str) -> str:
    """A layer's name in transformers' text models; mlx-lm wraps those of several media once more."""
    return path.removeprefix("language_model.")


def as_list(targets: Sequence[str] | str) -> list[str] | str:
    """Names as a list; a regular expression stays."""
    return targets if isinstance(targets, str) else list(targets)


class Answering:
    """Stands in for a module: the same, but for what it answers when called."""

    def __init__(self, module: Any, answer: Callable[..., Any]):
        self._module, self._answer = module, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class MLXEngine:
    """See `lorakit.engines.Engine` for the contract."""

    share = (0, 1)

    def __init__(self, model: Any, layers: dict[str, Any], tokenizer: Any, run: Run, config: Any):
        from mlx.optimizers import AdamW
        from mlx_lm.models.cache import make_prompt_cache

        self.processor = None
        self.objective, self.options = tasks.objective_for(run)
        self.model, self.tokenizer, self.pad_id, self.clip = (
            model,
            tokenizer,
            tokenizer.pad_token_id,
            run.max_grad_norm,
        )
        self.text = getattr(
            model, "language_model", model
        )  # the body that reads text, and its head
        self.body = next((name for name in BODIES if hasattr(self.text, name)), "")
        if not self.body:
            raise LorakitError(
                f"{run.model}: mlx-lm's {config.model_type} has none of {', '.join(BODIES)} before its "
                "head; leave engine out"
            )
        self.layers, self.run, self.depth = layers, run, len(make_prompt_cache(model))
        # Of a layer's W weights and H features a token costs 4 W forward and back, attention over T tokens 12 H T.
        blocks = sum(n for name, n in self._frozen().items() if ".layers." in name or ".h." in name)
        self.even = max(1, blocks) / self.depth / (3 * config.hidden_size)
        self.positions, self.vocabulary = (
            getattr(config, "max_position_embeddings", None),
            config.vocab_size,
        )
        self.trained = {
            f"{convert.PREFIX}{name}.lora_{key}.default.weight": layer[f"lora_{key}"]
            for name, layer in layers.items()
            for key in "AB"
        }
        # torch's AdamW: moments corrected, decay apart from the gradient. MLX's own default corrects nothing.
        self.optimizer = AdamW(
            run.learning_rate, eps=1e-8, weight_decay=run.weight_decay, bias_correction=True
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
        self.packing, words = self._isolates(
            min(run.max_length, 24 + (window if run.max_length > window else 0))
        )
        self.relative = (
            self.packing
        )  # rotary positions: rows may begin anywhere, so answers can be given together
        if run.packing:
            self.notes["packing"] = (self.packing, words)
        self.packing = self.packing and bool(run.packing)
        self.limit: int | None = None  # tokens at a time
        self.recomputes: bool | int = False
        self._compile(
            recompute=False if run.gradient_checkpointing == "auto" else run.gradient_checkpointing
        )
        self._compiled_sums: Any = mx.compile(self._sums)
        self._stepped: Any = mx.compile(
            self._step, inputs=self.optimizer.state, outputs=self.optimizer.state
        )

    def _isolates(self, length: int) -> tuple[bool, str]:
        """Whether a document in a row is what it is alone in the padded form: tried out, not believed."""
        low, high, second = np.random.default_rng(0).integers(0, self.vocabulary, (3, length))

        def logits(*documents: np.ndarray, packed: bool) -> np.ndarray:
            """(16, V) of the last document's end."""
            self.packing, number = packed, len(documents)
            end = np.arange(number * length) >= number * length - min(16, length - 1)
            batch = Batch(
                np.concatenate(documents), end, np.full(number, length), np.arange(number)
            )
            ids, document, places, _, _ = self._arrays(batch, width=number * length)  # one row
            return np.array(
                self._head(self._hidden(ids, document)[places])[: batch.count].astype(mx.float32)
            )

        plain = logits(second, packed=False)
        try:
            a, b = logits(low, second, packed=True), logits(high, second, packed=True)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            return False, f"padded: this model does not run over packs ({error})"
        noise = 1e-3 if self.run.precision == "fp32" else 0.1
        if not np.array_equal(a, b):
            return False, protocol.CROSSES
        if np.abs(a - plain).max() > noise * max(1.0, np.abs(plain).max()):
            return False, protocol.DIFFERS
        return (
            True,
            "packed: rows as wide as the longest document (tried at loading: no document sees another)",
        )

    # Forward

    def _arrays(self, batch: Batch, width: int | None = None) -> tuple[Any, ...]:
        """Tokens and documents (R, T); of K targets the places that predict them, answers and weights, the rest 0."""
        rows = Rows.of(
            batch,
            packed=self.packing,
            pad_id=self.pad_id,
            positions=self.positions,
            even=self.even,
            width=width,
        )
        targets = np.flatnonzero(batch.targets)
        size = rounded(max(1, len(targets)), 16)
        places, answers, weight = (
            np.zeros(size, dtype=d) for d in (np.int32, np.int32, np.float32)
        )
        places[: len(targets)], answers[: len(targets)], weight[: len(targets)] = (
            rows.place[targets] - 1,
            batch.ids[targets],
            1 if batch.weights is None else batch.weights[targets],
        )
        return tuple(mx.array(x) for x in (rows.ids, rows.document, places, answers, weight))

    def _hidden(self, ids: Any, document: Any) -> Any:
        """(R * T, H) behind the last layer."""
        cache = [Isolated(document)] * self.depth if self.packing else None
        return getattr(self.text, self.body)(ids, cache=cache).flatten(0, 1)

    def _head(self, hidden: Any) -> Any:
        """(K, V) logits of (K, H): what the model does behind its body, be it tied, scaled or capped."""
        body = getattr(self.text, self.body)
        object.__setattr__(self.text, self.body, Answering(body, lambda *_, **__: hidden[None]))
        try:
            return self.text(mx.zeros((1, 1), dtype=mx.int32))[0]
        finally:
            object.__delattr__(self.text, self.body)

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
                tensors[f"{convert.PREFIX}{name}.lora_{k}.default.weight"] for k in "AB"
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
            hidden = self._hidden(ids, document)[places]
            return mlx_loss.summed(self._head, hidden, answers, weight, self.vocabulary)

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
            hidden = self._hidden(ids, document)[places]
            count = len(values["length"])
            losses = mlx_loss.per_document(
                self._head, hidden, answers, weight, of_target, count, self.vocabulary
            )
        assert self.objective.losses
        return self.objective.losses(mx, -losses, values, self.options).sum()

    def _sums(
        self, tensors: dict, ids: Any, document: Any, places: Any, answers: Any, _: Any
    ) -> tuple[Any, Any]:
        """(K,) nats, (K,) whether the largest logit is the answer's."""
        with self._holding(tensors):
            hidden, step = (
                self._hidden(ids, document)[places],
                max(1, mlx_loss.ROOM // self.vocabulary),
            )
            found = []
            for k in range(0, len(places), step):
                logits = self._head(hidden[k : k + step])
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
        arrays = [*self._arrays(batch)]
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
                mx.eval(self._hidden(*self._arrays(batch)[:2]))
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
        found = self._compiled_sums(self.trained, *self._arrays(batch))
        losses, right = (np.array(x)[: int(batch.targets.sum())].astype(np.float64) for x in found)
        return protocol.per_document(batch, losses, right)

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        media: Sequence[dict[str, np.ndarray]] = (),
    ) -> list[list[int]]:
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
        max_new_tokens = protocol.new_tokens_that_fit(longest, max_new_tokens, self.positions)
        # Logits in fp32: the largest of bf16 may be lost among equals once the generator has normalized them.
        model = Answering(
            self.model, lambda *args, **kwargs: self.model(*args, **kwargs).astype(mx.float32)
        )
        if self.relative:
            try:
                return together(model, prompts, max_new_tokens, stop_ids)
            except ValueError:  # mlx-lm's model takes no rows of unequal length (Gemma 2)
                self.relative = False
        return [alone(model, prompt, max_new_tokens, stop_ids) for prompt in prompts]

    def memory(self) -> int:
        return max(self.training_peak, mx.get_peak_memory())

    def generation_memory(self) -> int:
        return self.generation_peak

    # What it holds

    def parameters(self) -> dict[str, tuple[int, bool]]:
        return {name: (t.size, True) for name, t in self.trained.items()} | {
            n: (s, False) for n, s in self._frozen().items()
        }

    def _frozen(self) -> dict[str, int]:
        """name -> values, a quantized weight's counted as what it stands for."""
        sizes = {}
        for path, module in self.model.named_modules():
            for key, value in module.items():
                if isinstance(value, mx.array) and not key.startswith(("_", "lora_")):
                    name = self._theirs(f"{path}.{key}")
                    if hasattr(module, "bits") and key in ("scales", "biases"):
                        continue
                    packed = hasattr(module, "bits") and key == "weight"
                    sizes[name] = value.size * 32 // module.bits if packed else value.size
        return sizes

    def fingerprint(self) -> dict[str, int]:
        from mlx.utils import tree_flatten

        whole_numbers = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
        frozen = {
            self._theirs(n): t
            for n, t in tree_flatten(self.model.parameters())
            if ".lora_" not in n
        }
        return {
            n: t.view(whole_numbers[t.dtype.size]).sum().item()
            for n, t in (frozen | self.trained).items()
        }

    def _theirs(self, path: str) -> str:
        return convert.PREFIX + transformers_name(path)

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
        run, tensors = self.run, self.weights()
        pairs = {
            name: {
                key: tensors[f"{convert.PREFIX}{name}.lora_{key}.default.weight"] for key in "AB"
            }
            for name in self.layers
        }
        targets = (
            base_model.spec(run.model).target_modules
            if run.target_modules == "auto"
            else run.target_modules
        )
        with whole(Path(path)) as part:
            convert.write_peft(
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
        self.model = self.text = self.optimizer = None
        self._gradients = self._compiled_sums = self._stepped = None
        mx.clear_cache()


def together(
    model: Any, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int]
) -> list[list[int]]:
    """Greedy answers by mlx-lm's batch generator: rows end when they are done."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model,
        max_tokens=max_new_tokens,
        stop_tokens=[[i] for i in stop_ids],
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
    )
    answers: dict[int, list[int]] = {number: [] for number in generator.insert(prompts)}
    while said := generator.next_generated():
        for word in said:
            if word.finish_reason != "stop":
                answers[word.uid].append(word.token)
    generator.close()
    return list(answers.values())


def alone(model: Any, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
    """One greedy answer, for models whose positions are counted from the row's beginning."""
    from mlx_lm.generate import generate_step

    answer: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_new_tokens):
        if token in stop_ids:
            break
        answer.append(token)
    return answer
