"""mlx-lm on Apple Silicon; also on its CPU build for Linux, which the tests run on.

One process. Adapters stay apart from the base, in PEFT's names and shapes, and are never fused.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

try:
    import mlx.core as mx
except ImportError:  # `fits` says so
    mx = None

from lorakit.common import hub
from lorakit.common.errors import LorakitError
from lorakit.common.files import whole
from lorakit.engines.mlx import convert
from lorakit.machine import distributed
from lorakit.models import base_model
from lorakit.models import spec as models
from lorakit.run import Run
from lorakit.tasks.batches import Batch

QUANTIZATIONS = ("affine4", "none")  # of a frozen base; the first where memory is short
# Settings that this engine does not serve: setting -> (values that it does, the cure).
SERVED: dict[str, tuple[tuple, str]] = {
    "method": (("lora",), "use method=lora"),
    "use_dora": ((False,), "leave use_dora out"),
    "optimizer": (("adamw",), "use optimizer=adamw"),
    "precision": (("fp32", "bf16"), "use bf16 or fp32"),
    "quantization": (("auto", *QUANTIZATIONS), "use affine4 (4 bits in groups of 64) or none"),
    "shard": ((False,), "leave shard out"),
    "fake_quantization": (("none",), "leave fake_quantization out"),
}
BODIES = ("model", "transformer", "backbone")  # what mlx-lm's models call all before the head
RENAMED = {"mistral": "llama"}  # architectures that mlx-lm serves by another's file


def fits(facts: Any, spec: Any) -> str:
    """Both packages, and a model of mlx-lm's with the layers that get an adapter."""
    lost = next((name for name in ("mlx", "mlx-lm") if not facts.packages.get(name)), None)
    found = util.find_spec("mlx_lm")
    if lost or mx is None or found is None:
        return f"{lost or 'mlx'} is not installed"
    if spec.stored == "nf4":
        return "bitsandbytes' NF4 has no form in MLX"
    kind = spec.config.get("model_type") or kind_of(spec.path)
    file = Path(found.origin).parent / "models" / f"{RENAMED.get(kind, kind)}.py"
    if not kind or not file.is_file():
        return kind and f"mlx-lm has no {kind}"
    return unlike(spec.path, json.dumps(spec.config), spec.target_modules)


@lru_cache(maxsize=32)
def unlike(path: str, sizes: str, targets: tuple[str, ...] | str) -> str:
    """Why adapters for transformers' model find no place in mlx-lm's: both are made, without weights."""
    from transformers import AutoConfig

    kind = ""
    try:
        config = (
            AutoConfig.for_model(**json.loads(sizes))
            if json.loads(sizes)
            else base_model.config(path)
        )
        given, kind = config.to_dict() | convert.arguments(config), config.model_type
        from mlx_lm import utils

        model, settings = utils._get_classes(given)
        there = adaptable(model(settings.from_dict(given)))
        names = [name for name in linear_layers(config) if models.adapts(targets, name)]
    except (
        Exception,
        SystemExit,
    ) as error:  # mlx-lm checks little, and one of its files ends the process
        return f"mlx-lm cannot make this {kind} ({hub.reason(error)})"
    lost = next(
        (name for name in names if here(name, there) is None), None if names else "any linear layer"
    )
    return f"mlx-lm's {kind} lacks {lost}" if lost else ""


def adaptable(model: Any) -> dict[str, str]:
    """transformers' name of every layer that can get an adapter -> mlx-lm's."""
    return {
        theirs(path): path
        for path, m in model.named_modules()
        if hasattr(m, "to_quantized") or hasattr(m, "bits")
    }


def kind_of(path: str) -> str:
    """`model_type` of a folder; of a hub id "", which `load` will see to."""
    try:
        return json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get(
            "model_type", ""
        )
    except (OSError, ValueError, AttributeError):
        return ""


def forms(facts: Any) -> tuple[str, ...]:
    return QUANTIZATIONS


def suits(facts: Any) -> tuple[int, str]:
    if facts.system == "Darwin arm64":
        return 2, "it is made for Apple Silicon: one memory, 4-bit weights, compiled steps"
    return 0, "it is made for Apple Silicon; here it serves when asked for"


def precision(facts: Any) -> tuple[str, str] | None:
    """What to compute in where it is open; None: what any engine would."""
    if facts.system != "Darwin arm64":
        return None
    return "bf16", "half the memory of fp32 on Apple's GPU; the adapters stay fp32"


def frozen(run: Run, weights: int, experts: int) -> float:
    """Bytes of the base, of whose weights so many are experts': its files' where they are quantized already."""
    width, spec = {"fp32": 4, "bf16": 2}.get(run.precision, 4), base_model.spec(run.model)
    if spec.config:  # on the hub
        if spec.stored == "mxfp4":
            return (
                experts * (4 + 8 / 32) / 8 + (weights - experts) * width
            )  # a scale of 8 bits for 32 weights
    else:
        folder, config = Path(spec.path), base_model.config(run.model)
        said = getattr(config, "quantization", None) or getattr(config, "quantization_config", None)
        if said and folder.is_dir():
            return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
        if said and "bits" in said:
            return (
                weights * (said["bits"] + 32 / said["group_size"]) / 8
            )  # with a scale and an offset of 16 bits
    return weights * (4 + 16 * width / 64 if run.quantization == "affine4" else 8 * width) / 8


def working(run: Run, tokens: int) -> float:
    """Bytes alive at the worst moment of a micro-batch beside weights and trained gradients.

    Fitted to what MLX's allocator held at most in 28 small runs on a CPU (23 of them: 6 % less to 27 % more): kept of a
    layer are vectors of its inner widths and attention's scores in full; of the logits all, since MLX runs ahead.
    """
    text, width = (
        base_model.sizes(run.model).get_text_config(),
        {"fp32": 4, "bf16": 2}.get(run.precision, 4),
    )
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    wide = max(wide) if isinstance(wide, (list, tuple)) else wide
    used = getattr(text, "num_experts_per_tok", None)  # each expert's input and output stand apart
    vector = tokens * width * text.hidden_size
    block = 14 * vector + 5 * tokens * width * wide * (used or 1) + 10 * vector * (used or 0)
    scores = tokens * run.max_length * text.num_attention_heads * width
    head = 5.3 * 4 * tokens * text.vocab_size
    count = text.num_hidden_layers
    again = min(
        count,
        count
        if run.gradient_checkpointing is True
        else 0
        if run.gradient_checkpointing == "auto"
        else run.gradient_checkpointing,
    )
    kept = again * vector + (count - again) * (0.6 * block + scores)
    return (
        kept + head + (1.6 * block + 4.5 * scores if again == count else 1.2 * block + 3 * scores)
    )


def load(run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()) -> MLXEngine:
    """The base with a new adapter to train, or with a saved one (`adapter`) to ask."""
    for name, (values, cure) in SERVED.items():
        if getattr(run, name) not in values:
            raise LorakitError(
                f"{name}={getattr(run, name)!r} is not served by engine={run.engine!r}; {cure}, or "
                "leave engine out"
            )
    if distributed.join().size > 1:
        raise LorakitError(f"engine={run.engine!r} serves one process; leave processes out")
    config, tokenizer = base_model.config(run.model), base_model.tokenizer(run.model)[0]
    text = config.get_text_config()
    folder = convert.files(run.model)
    try:
        model, settings = convert.read_base(folder, config)
    except OSError as error:
        raise base_model.unusable(run.model, error) from None
    except (
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        SystemExit,
    ) as error:  # see `unlike`
        raise LorakitError(
            f"{run.model}: mlx-lm cannot load this {text.model_type} ({hub.reason(error).rstrip('.')}). "
            "Leave engine out, or, where its files may be cut, download it again"
        ) from None
    stored = settings.get("quantization")
    if run.quantization == "affine4" and not stored:
        convert.quantize(model)
    model.set_dtype({"fp32": mx.float32, "bf16": mx.bfloat16}[run.precision])
    model.freeze()
    refuse(run, text, len(tokenizer), model)
    saved = convert.read_peft(Path(adapter)) if adapter else None
    layers = with_adapter(model, run, config, saved)
    model.eval()
    mx.eval(model.parameters())
    if mx.metal.is_available():  # else macOS may page weights out between updates
        mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
    engine = MLXEngine(model, layers, tokenizer, run, text)
    if stored:
        kind = f"{stored['bits']} bits ({stored.get('mode', 'affine')}, groups of {stored['group_size']})"
        engine.notes["quantization"] = ("none", f"its weights are stored in {kind} already")
    return engine


def refuse(run: Run, text: Any, tokens: int, model: Any) -> None:
    """Raises `LorakitError` for rows and tokenizers that the model has no room for."""
    from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

    limit, window = (
        getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")
    )
    if limit and run.max_length > limit:
        raise LorakitError(
            f"max_length={run.max_length} is longer than the {limit} positions of {run.model}"
        )
    if tokens > text.vocab_size:
        raise LorakitError(
            f"{run.model}: the tokenizer has {tokens} tokens, the model {text.vocab_size}; they do not "
            "belong together"
        )
    windowed = any(isinstance(cache, RotatingKVCache) for cache in make_prompt_cache(model))
    if window and run.max_length > window and not windowed:
        raise LorakitError(
            f"max_length={run.max_length} is longer than the window of {window} tokens that "
            f"{run.model} attends to, and mlx-lm's model has none; lower max_length to {window}, or "
            "leave engine out"
        )


def with_adapter(
    model: Any, run: Run, config: Any, saved: tuple[dict, dict] | None
) -> dict[str, Any]:
    """Puts adapters in place; transformers' name of each layer -> its `Lora`."""
    from mlx.utils import tree_unflatten

    from lorakit.engines.mlx.lora import Lora

    linear, places = linear_layers(config), adaptable(model)
    spec = base_model.spec(run.model)
    wanted = spec.target_modules if run.target_modules == "auto" else run.target_modules
    names = list(saved[1]) if saved else [name for name in linear if models.adapts(wanted, name)]
    lost = (
        []
        if saved or isinstance(wanted, str)
        else [t for t in wanted if not any(models.adapts([t], n) for n in linear)]
    )
    if lost or not names:
        present = ", ".join(sorted({n.rpartition(".")[2] for n in linear}))
        none = f"has no layer '{lost[0]}'" if lost else "has no such layer"
        raise LorakitError(f"target_modules={wanted!r}: {run.model} {none}; it has {present}")
    if unknown := [n for n in names if here(n, places) is None]:
        raise LorakitError(
            f"{run.model}: '{unknown[0]}' gets an adapter and is no layer of mlx-lm's model"
            + (
                ". Was the adapter made for another base?"
                if saved
                else "; name other target_modules"
            )
        )
    rng, modules = np.random.default_rng(run.seed), dict(model.named_modules())
    settings = (
        saved[0]
        if saved
        else {"r": run.rank, "lora_alpha": run.alpha, "use_rslora": run.use_rslora}
    )
    layers = {
        name: Lora(
            modules[here(name, places)], settings["r"], convert.scale(settings), run.dropout, rng
        )
        for name in names
    }
    model.update_modules(
        tree_unflatten([(here(name, places), layer) for name, layer in layers.items()])
    )
    for name, pair in (saved[1] if saved else {}).items():
        layer = layers[name]
        if (pair["A"].shape, pair["B"].shape) != (layer.lora_A.shape, layer.lora_B.shape):
            raise LorakitError(
                f"the adapter's '{name}' has the shapes {pair['A'].shape} and {pair['B'].shape}, "
                f"expected {layer.lora_A.shape} and {layer.lora_B.shape}. Was it made for another base?"
            )
        layer.lora_A, layer.lora_B = (mx.array(pair[k].astype(np.float32)) for k in "AB")
    return layers


def theirs(path: str) -> str:
    """A layer's name in transformers' text models; mlx-lm wraps those of several media once more."""
    return path.removeprefix("language_model.")


def here(name: str, places: dict[str, str]) -> str | None:
    """mlx-lm's name of a layer; a model of several media has its text one level deeper in transformers too."""
    return places.get(name) or places.get(name.replace("model.language_model.", "model."))


def linear_layers(config: Any) -> list[str]:
    """What PEFT would see: the names of transformers' linear layers but the head, from its skeleton."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    head = skeleton.get_output_embeddings()
    return [
        n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    ]


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
        self.worked, self.pending, self.steps = 0, 0, []
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
        self._compiled_sums = mx.compile(self._sums)
        self._stepped = mx.compile(
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
            return (
                False,
                "padded: in this model a document in a pack would see the one before it (tried at loading)",
            )
        if np.abs(a - plain).max() > noise * max(1.0, np.abs(plain).max()):
            return (
                False,
                "padded: this model's own positions or attention differ over packs (tried at loading)",
            )
        return (
            True,
            "packed: rows as wide as the longest document (tried at loading: no document sees another)",
        )

    # Forward

    def _arrays(self, batch: Batch, width: int | None = None) -> tuple[Any, Any, Any, Any, Any]:
        """Tokens and documents (R, T); of K targets the places that predict them, answers and weights, the rest 0."""
        from lorakit.engines.mlx.rows import Rows, rounded

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
            1,
        )
        return tuple(mx.array(x) for x in (rows.ids, rows.document, places, answers, weight))

    def _hidden(self, ids: Any, document: Any) -> Any:
        """(R * T, H) behind the last layer."""
        from lorakit.engines.mlx.rows import Isolated

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
        from lorakit.engines.mlx import loss as mlx_loss

        with self._holding(tensors, key):
            hidden = self._hidden(ids, document)[places]
            return mlx_loss.summed(self._head, hidden, answers, weight, self.vocabulary)

    def _sums(
        self, tensors: dict, ids: Any, document: Any, places: Any, answers: Any, _: Any
    ) -> tuple[Any, Any]:
        """(K,) nats, (K,) whether the largest logit is the answer's."""
        from lorakit.engines.mlx import loss as mlx_loss

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
            return tuple(mx.concatenate(part) for part in zip(*found, strict=True))

    # Training

    def _compile(self, recompute: bool | int) -> None:
        from lorakit.engines.mlx.lora import recomputed

        done, self.recomputes = int(self.recomputes), recompute
        for layer in self.model.layers[done : None if recompute is True else recompute]:
            recomputed(layer)
        self._gradients = mx.compile(mx.value_and_grad(self._summed))

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
        longest, most = int(batch.lengths.max()), len(batch.ids)
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
        loss, gradients = self._gradients(self.trained, *self._arrays(batch), key)
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
        norm = mx.sqrt(sum(mx.square(g).sum() for g in self.gradients.values())).item() / max(
            count, 1
        )
        finite = np.isfinite(norm)
        if finite:
            clip = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
            self.optimizer.learning_rate = learning_rate
            self.trained = self._stepped(
                self.trained, self.gradients, mx.array(clip / max(count, 1))
            )
            mx.eval(self.trained, self.optimizer.state)
            self._put(self.trained, None)
        self.worked, self.pending, self.gradients = self.worked + self.pending, 0, None
        mx.clear_cache()
        return norm, not finite

    def _step(self, tensors: dict, gradients: dict, factor: Any) -> dict:
        return self.optimizer.apply_gradients(
            {n: g * factor for n, g in gradients.items()}, tensors
        )

    def blame(self, batches: list[Batch]) -> str:
        """The first layer whose output is not finite; looked at eagerly, one after the other."""
        from lorakit.engines.mlx.lora import watched

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
        per_document = self.predict(batch)
        return float(per_document[:, 0].sum()), int(per_document[:, 1].sum())

    def predict(self, batch: Batch) -> np.ndarray:
        found = self._compiled_sums(self.trained, *self._arrays(batch))
        losses, right = (np.array(x)[: int(batch.targets.sum())].astype(np.float64) for x in found)
        document = batch.documents[batch.targets]
        return np.stack(
            [
                np.bincount(document, w, minlength=len(batch.lengths))
                for w in (losses, np.ones_like(losses), right)
            ],
            axis=1,
        )

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
        width = max(map(len, prompts))
        if self.positions:  # the last new token needs no position
            if width > self.positions:
                raise LorakitError(
                    f"a prompt has {width} tokens, and the model {self.positions} positions"
                )
            max_new_tokens = min(max_new_tokens, self.positions - width + 1)
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
        return convert.PREFIX + theirs(path)

    def weights(self) -> dict[str, np.ndarray]:
        return {n: np.array(t) for n, t in self.trained.items()}

    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        if tensors.keys() != self.trained.keys():
            other = sorted(tensors.keys() ^ self.trained.keys())[0]
            raise LorakitError(
                f"the checkpoint does not belong to this model and method: '{other}' is in one only"
            )
        for name, tensor in self.trained.items():
            if tensors[name].shape != tensor.shape:
                raise LorakitError(
                    f"the checkpoint does not belong to this model: '{name}' has the shape "
                    f"{tensors[name].shape}, expected {tensor.shape}"
                )
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
        self.set_weights(
            {k.removeprefix("weight/"): v for k, v in state.items() if k.startswith("weight/")}
        )
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
                targets=None if targets == "all-linear" else targets,
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
