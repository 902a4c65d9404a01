"""The interfaces of this package: `Task`, how examples become rows, and `Objective`, what is learnt from a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from lorakit.data.example import Example

Row = dict[str, Any]  # one encoded row: NumPy arrays, numbers, strings and bytes by column


@dataclass(frozen=True)
class Document:
    """A sequence of tokens that no other attends to. A row has one, or several that must stay together."""

    ids: Sequence[int]  # (T,)
    targets: Sequence[bool]  # (T,) True where the token is predicted; the first one never is
    weights: Sequence[float] | None = None  # (T,) how much each target counts; None: once
    values: Mapping[str, float] = field(default_factory=dict)  # numbers that the objective needs
    unit: int | None = None  # how much it counts in the loss's denominator; None: its targets
    mismatched: Document | None = None  # see `Objective.MEAN_RATIO`


def _always(processor: Any) -> bool:
    return True


class Task(Protocol):
    """A file of `tasks/`. `reader` is the model's tokenizer, or its processor where there is a medium."""

    GIVES: str  # the field of an `Example` that it takes
    OBJECTIVE: str  # a file of `objectives/`: what is learnt unless the run names another
    MEDIUM: str  # what comes with the words: "", `image` or `sound`
    METRICS: Sequence[str]  # scored unless the run names others
    COLUMNS: Mapping[str, Any]  # the kind of each column of a row; `["int32"]` is a list
    SETTINGS: Sequence[str] = ()  # settings of the run that `encode` also takes, by name

    def encode(self, example: Example, reader: Any, max_length: int) -> list[Row]:
        """The rows of one example. Raises `BadRow` when it gives none."""

    def ask(self, question: str, reader: Any) -> Row:
        """A row for a question put by a person, ready for an answer."""

    def guard(self, rows: Iterable[Row], tokenizer: Any) -> None:
        """Raises `LorakitError` when training on these rows would be pointless."""

    def stop_ids(self, rows: Iterable[Row], tokenizer: Any) -> list[int]:
        """The tokens that end an answer."""

    def opening(self, tokenizer: Any) -> int | None:
        """The token after which an answer's words begin, or None."""

    # Whether the task can be with this processor.
    suits: Callable[[Any], bool] = _always
    # (a set's encoded rows as a `datasets.Dataset`, max_length) -> the same with what a row takes from others.
    complete: Callable[[Any, int], Any] | None = None
    # (row, processor, a NumPy generator in training, else None) -> the model's inputs of a row's media by name, arrays
    # whose first axis grows with the row. None: there is no medium.
    inputs: Callable[[Row, Any, np.random.Generator | None], dict[str, np.ndarray]] | None = None


class Objective(Protocol):
    """A file of `tasks/objectives/`. Engines compute one of three things, and the objective says which it needs."""

    HEAD: str  # of the model: `tokens` (a language model's) or `labels` (a classifier's)
    # `target_loss`: the cross entropy summed over the targets.
    # `class_logits`: (D, C) logits of classes; the loss is their cross entropy with the documents' value `label`.
    # `document_logps`: (D,) log-probabilities of each document's targets, of which `losses` makes each row's loss.
    NEEDS: str
    UNIT: str  # what the loss is divided by the number of
    METRICS: Sequence[str] = ("loss",)  # scored whatever the run names
    MEASURES: Sequence[str] = ()  # what a prediction gives beside losses and answers

    COLUMNS: Sequence[str] = ("ids",)  # columns that a row must have
    OPTIONS: Mapping[
        str, float
    ] = {}  # name -> default; set by `objective: {name: {option: value}}`
    REFERENCE: bool = False  # whether documents need `reference`, the base's log-probabilities
    # Whether documents need `mean_ratio`: the mean of log(p / p_base) of their `mismatched` ones over a whole update.
    MEAN_RATIO: bool = False
    LEARNING_RATE: float | None = None  # where the run names none; None: the run's default

    def documents(self, row: Row) -> list[Document]:
        """What a row is trained on, in order."""

    # (the arrays' module, log-probabilities (D,), values of the documents by name, options) -> (R,) losses of R rows.
    # Plain arithmetic alone, so that NumPy, torch and MLX compute and differentiate the same formula.
    losses: Callable[..., Any] | None = None
    # (scores (D, 3), values, options) -> (R, 7) loss, 1, ranked right, rewards of the chosen and of the rejected answer
    # (nan where a row has none), nats and tokens of the chosen answer. `scores`: nats, targets, targets right.
    statistics: Callable[..., np.ndarray] | None = None
