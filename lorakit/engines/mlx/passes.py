"""Forward passes of mlx-lm's models over micro-batches, packed or padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.engines import protocol
from lorakit.engines.mlx.rows import Isolated, Rows, rounded
from lorakit.engines.mlx.tensors import frozen_sizes
from lorakit.run import Run
from lorakit.tasks.batches import Batch

BODIES = ("model", "transformer", "backbone")  # what mlx-lm's models call all before the head


class Answering:
    """Stands in for a module: the same, but for what it answers when called."""

    def __init__(self, module: Any, answer: Callable[..., Any]):
        self._module, self._answer = module, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Passes:
    """Runs a model over micro-batches. `packing`: several documents in a row, none of which sees another."""

    packing = False

    def __init__(self, model: Any, run: Run, config: Any, pad_id: int):
        from mlx_lm.models.cache import make_prompt_cache

        self.pad_id, self.precision = pad_id, run.precision
        self.text = getattr(
            model, "language_model", model
        )  # the body that reads text, and its head
        self.body = next((name for name in BODIES if hasattr(self.text, name)), "")
        if not self.body:
            raise LorakitError(
                f"{run.model}: mlx-lm's {config.model_type} has none of {', '.join(BODIES)} before its "
                "head; leave engine out"
            )
        self.depth = len(make_prompt_cache(model))
        # Of a layer's W weights and H features a token costs 4 W forward and back, attention over T tokens 12 H T.
        sizes = frozen_sizes(model).items()
        blocks = sum(n for name, n in sizes if ".layers." in name or ".h." in name)
        self.even = max(1, blocks) / self.depth / (3 * config.hidden_size)
        self.positions = getattr(config, "max_position_embeddings", None)
        self.vocabulary = config.vocab_size

    def isolates(self, length: int) -> tuple[bool, str]:
        """Whether a document in a row is what it is alone in the padded form: tried out, not believed."""
        low, high, second = np.random.default_rng(0).integers(0, self.vocabulary, (3, length))

        def logits(*documents: np.ndarray, packed: bool) -> np.ndarray:
            """(16, V) of the last document's end."""
            self.packing, number = packed, len(documents)
            end = np.arange(number * length) >= number * length - min(16, length - 1)
            batch = Batch(
                np.concatenate(documents), end, np.full(number, length), np.arange(number)
            )
            ids, document, places, _, _ = self.arrays(batch, width=number * length)  # one row
            return np.array(
                self.head(self.hidden(ids, document)[places])[: batch.count].astype(mx.float32)
            )

        plain = logits(second, packed=False)
        try:
            a, b = logits(low, second, packed=True), logits(high, second, packed=True)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            return False, f"padded: this model does not run over packs ({error})"
        noise = 1e-3 if self.precision == "fp32" else 0.1
        if not np.array_equal(a, b):
            return False, protocol.CROSSES
        if np.abs(a - plain).max() > noise * max(1.0, np.abs(plain).max()):
            return False, protocol.DIFFERS
        return (
            True,
            "packed: rows as wide as the longest document (tested at loading: documents do not influence each other)",
        )

    def arrays(self, batch: Batch, width: int | None = None) -> tuple[Any, ...]:
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

    def hidden(self, ids: Any, document: Any) -> Any:
        """(R * T, H) behind the last layer."""
        cache = [Isolated(document)] * self.depth if self.packing else None
        return getattr(self.text, self.body)(ids, cache=cache).flatten(0, 1)

    def head(self, hidden: Any) -> Any:
        """(K, V) logits of (K, H): what the model does behind its body, be it tied, scaled or capped."""
        body = getattr(self.text, self.body)
        object.__setattr__(self.text, self.body, Answering(body, lambda *_, **__: hidden[None]))
        try:
            return self.text(mx.zeros((1, 1), dtype=mx.int32))[0]
        finally:
            object.__delattr__(self.text, self.body)
