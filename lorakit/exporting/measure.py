"""What a model says to a proof: losses, the distribution of the next token, greedy answers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.exporting.proof import Proof, ProofRow
from lorakit.exporting.target import Runtime

DECIDED = 0.5  # nats between a model's two first choices from which its first one is no near tie
KEPT_BYTES = 2e8  # of the tuned model's distributions that an export is compared with
FEWEST_ROWS, FEWEST_ANSWERS = 8, 4  # that are asked whatever time they take

Progress = Callable[[str, int, int], None]  # (what, done, of)


def silent(what: str, done: int, of: int) -> None:
    """Shows nothing."""


@dataclass
class Said:
    """What one model said.

    Attributes:
        nats: summed loss of each row's targets; `targets` their number; `own` whether the row is of the run.
        answers: greedy tokens of the first prompts.
        margins: of each answer and its end, nats between the two first choices at every token.
        probabilities: (n, C) of a classifier.
        tokens_per_second: of the answers; of a classifier rows a second.
    """

    nats: list[float] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    margins: list[list[float]] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    precision: str = "fp32"
    quota: int = 0  # distributions kept of each row at most
    vocabulary: int = 0

    def loss(self, rows: int | None = None, *, own: bool = True) -> float:
        """Nats a target token over the first rows that are the run's own, or that are not."""
        pairs = [
            (n, t) for n, t, o in list(zip(self.nats, self.targets, self.own))[:rows] if o == own
        ]
        return sum(n for n, _ in pairs) / max(1, sum(t for _, t in pairs))


@dataclass
class Compared(Said):
    """What an export said, beside the tuned model.

    Attributes:
        divergence: of each row, KL divergence from the tuned model, summed over `compared` positions.
        same: of each row, positions with the tuned model's first choice.
        decided: positions where that is `DECIDED` ahead; `decided_same` those of them with the same choice.
    """

    divergence: list[float] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    decided_same: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(…, V) in fp64, since the terms of a divergence cancel."""
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nats(logits: np.ndarray, row: ProofRow) -> float:
    """The summed loss of a row's targets; (T, V) logits predict the token after each."""
    places = [i for i, on in enumerate(row.targets) if on]
    chosen = log_softmax(logits[[i - 1 for i in places]])
    return -float(chosen[range(len(places)), [row.ids[i] for i in places]].sum()) if places else 0.0


def kept_positions(row: ProofRow, most: int) -> np.ndarray:
    """Positions of a row whose distributions are compared, evenly spread."""
    count = len(row.ids) - 1
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def margins(logits: np.ndarray) -> np.ndarray:
    """(…) nats between the two most probable tokens."""
    top = np.partition(logits, -2, axis=-1)
    return np.asarray(top[..., -1] - top[..., -2], dtype=np.float64)


def ask_reference(model: Runtime, proof: Proof, folder: Path, progress: Progress = silent) -> Said:
    """What the tuned model says, with its distributions in `folder/distributions.npy`, (N, V) fp32."""
    said = Said()
    if proof.inputs:
        return _classes(said, model, proof, progress)
    kept: list[np.ndarray] = []
    began = time.thread_time()
    for i, row in enumerate(proof.rows):
        if i >= FEWEST_ROWS and time.thread_time() - began > proof.seconds / 2:
            break
        logits = model.logits(row.ids)
        if not kept:
            said.vocabulary = logits.shape[-1]
            said.quota = max(8, int(KEPT_BYTES / (4 * said.vocabulary * len(proof.rows))))
        kept.append(log_softmax(logits[kept_positions(row, said.quota)]).astype("f4"))
        said.nats.append(nats(logits, row))
        said.targets.append(sum(row.targets))
        said.own.append(row.own)
        progress("tuned model: rows", i + 1, len(proof.rows))
    np.save(folder / "distributions.npy", np.concatenate(kept))
    _answer(said, model, proof, len(proof.prompts), progress, "tuned model: answers")
    for prompt, answer in zip(proof.prompts, said.answers):
        found = margins(model.logits([*prompt, *answer])[len(prompt) - 1 :])
        said.margins.append(found.tolist())
    return said


def ask_export(
    runtime: Runtime, proof: Proof, tuned: Said, folder: Path, progress: Progress = silent
) -> Compared:
    """What an export says, beside the tuned model's distributions in `folder`. Stops early when its time is over."""
    said = Compared()
    if proof.inputs:
        _classes(said, runtime, proof, progress)
        return said
    kept = np.load(folder / "distributions.npy", mmap_mode="r")
    start, began = 0, time.thread_time()
    for i, row in enumerate(proof.rows[: len(tuned.nats)]):
        if i >= FEWEST_ROWS and time.thread_time() - began > proof.seconds:
            break
        logits = runtime.logits(row.ids)[:, : tuned.vocabulary]
        places = kept_positions(row, tuned.quota)
        reference = np.asarray(kept[start : start + len(places)], dtype=np.float64)
        start += len(places)
        _compare(said, reference, log_softmax(logits[places]))
        said.nats.append(nats(logits, row))
        said.targets.append(sum(row.targets))
        said.own.append(row.own)
        progress("export: rows", i + 1, len(tuned.nats))
    _answer(said, runtime, proof, len(tuned.answers), progress, "export: answers")
    return said


def _compare(said: Compared, reference: np.ndarray, found: np.ndarray) -> None:
    """Adds a row: (P, V) log-probabilities of the tuned model and of the export at the same positions."""
    weights = np.exp(reference)
    with np.errstate(invalid="ignore"):  # a probability of zero counts nothing
        terms = np.where(weights > 0, weights * (reference - found), 0.0)
    same = reference.argmax(-1) == found.argmax(-1)
    decided = margins(reference) >= DECIDED
    said.divergence.append(float(terms.sum()))
    said.compared.append(len(reference))
    said.same.append(int(same.sum()))
    said.decided.append(int(decided.sum()))
    said.decided_same.append(int((same & decided).sum()))


def _answer(
    said: Said, model: Runtime, proof: Proof, count: int, progress: Progress, what: str
) -> None:
    began = time.thread_time()
    watched = time.perf_counter()
    for i, prompt in enumerate(proof.prompts[:count]):
        if i >= FEWEST_ANSWERS and time.thread_time() - began > proof.seconds / 2:
            break
        said.answers.append(model.generate(prompt, proof.answer_tokens(prompt), proof.stop_ids))
        progress(what, i + 1, count)
    tokens = sum(len(answer) + 1 for answer in said.answers)
    said.tokens_per_second = tokens / max(1e-9, time.perf_counter() - watched)


def _classes(said: Any, model: Runtime, proof: Proof, progress: Progress) -> Any:
    """A classifier's answer is its most probable class, its loss that of the row's own class."""
    began = time.perf_counter()
    for i, inputs in enumerate(proof.inputs):
        found = model.probabilities(inputs)
        said.probabilities.append(found.tolist())
        said.answers.append([int(found.argmax())])
        said.nats.append(-math.log(max(float(found[proof.labels[i]]), 1e-30)))
        said.targets.append(1)
        said.own.append(True)
        progress("rows", i + 1, len(proof.inputs))
    said.tokens_per_second = len(proof.inputs) / max(1e-9, time.perf_counter() - began)
    return said


def equal_tokens(one: Sequence[list[int]], two: Sequence[list[int]]) -> float:
    """The share of the first one's tokens, ends included, that stand before the first difference."""
    before = [first_difference(x, y) for x, y in zip(one, two, strict=True)]
    return sum(before) / max(1, sum(len(x) + 1 for x in one))


def first_difference(one: Sequence[int], two: Sequence[int]) -> int:
    """The place of the first token, or end, that differs; one behind the end where none does."""
    pairs = zip([*one, -1], [*two, -1])
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(one) + 1)


def write(said: Said, path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(asdict(said)), encoding="utf-8")


def read(path: Path) -> Said:
    """What `write` wrote."""
    return Said(**json.loads(path.read_text(encoding="utf-8")))


def perplexity(loss: float) -> float:
    """exp of nats a token, finite."""
    return math.exp(min(700.0, loss))
