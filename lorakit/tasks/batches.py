"""Which rows make up an update, in which pieces: everything follows from the settings and the update's number.

So "the place in the data" of a checkpoint is that number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lorakit.tasks.objectives import next_token
from lorakit.tasks.protocol import Document, Row
from lorakit.tasks.rows import Rows


@dataclass(frozen=True)
class Batch:
    """One micro-batch: documents end to end. N tokens in D documents, some of which may be a picture alone."""

    ids: np.ndarray  # (N,) int64
    targets: np.ndarray  # (N,) bool; the first token of a document never is one
    lengths: np.ndarray  # (D,) int64, tokens of each document
    rows: np.ndarray  # (D,) int64, index of each document in its set
    seed: int = 0  # of the dropout in this micro-batch
    idle: bool = (
        False  # computed only because another process needs the company: counts for nothing
    )
    # (D,) what the objective needs of each document by name, e.g. `label`, the number of its class
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray | None = None  # (N,) float32, how much each target counts; None: once
    units: np.ndarray | None = None  # (D,) int64, what each counts; None: its targets
    media: tuple[
        dict[str, np.ndarray], ...
    ] = ()  # of each document the inputs of its pictures or its sound
    mismatched: Batch | None = None  # the documents that `with_mean_ratio` compares with the base

    @property
    def count(self) -> int:
        """What the loss is divided by the number of: target tokens, or rows."""
        if self.idle:
            return 0
        return int(self.targets.sum() if self.units is None else self.units.sum())

    @property
    def starts(self) -> np.ndarray:
        """(R,) the first document of each row; the documents of a row stand side by side."""
        return np.flatnonzero(np.append(True, self.rows[1:] != self.rows[:-1]))

    @property
    def row_tokens(self) -> np.ndarray:
        """(R,) tokens of each row."""
        return np.add.reduceat(self.lengths, self.starts)

    def parts(self, tokens: int | None) -> list[Batch]:
        """The same rows in batches of at most so many tokens, one row at least; None: itself."""
        starts = self.starts
        if tokens is None or len(self.ids) <= tokens or len(starts) == 1:
            return [self]
        bounds = np.append(starts, len(self.lengths))  # documents at which a row begins
        ends = np.append(0, np.cumsum(self.lengths))[bounds]  # tokens before those
        out: list[Batch] = []
        row = 0
        while row < len(starts):
            after = int(np.searchsorted(ends, ends[row] + tokens, side="right")) - 1
            after = max(row + 1, after)
            begin, (first, last) = ends[row], bounds[[row, after]]
            here = slice(begin, ends[after])
            out.append(
                replace(
                    self,
                    ids=self.ids[here],
                    targets=self.targets[here],
                    weights=None if self.weights is None else self.weights[here],
                    lengths=self.lengths[first:last],
                    rows=self.rows[first:last],
                    seed=self.seed + len(out),
                    media=self.media[first:last],
                    values={name: v[first:last] for name, v in self.values.items()},
                    units=None if self.units is None else self.units[first:last],
                    mismatched=None,
                )
            )
            row = after
        return out

    @property
    def documents(self) -> np.ndarray:
        """(N,) which document each token is in."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def positions(self) -> np.ndarray:
        """(N,) each token's place in its document."""
        return np.arange(len(self.ids)) - np.repeat(
            np.cumsum(self.lengths) - self.lengths, self.lengths
        )


Documents = Callable[[Row], list[Document]]  # an objective's `documents`


def collate(
    rows: Sequence[Row],
    indices: Sequence[int] | np.ndarray,
    seed: int = 0,
    inputs: Any = None,
    update: tuple[int, int] | None = None,
    documents: Documents = next_token.documents,
) -> Batch:
    """Rows end to end. A first token that is marked has nothing before it to be predicted from: it is unmarked.

    `inputs(row, random)` makes a row's media the model's inputs; in training `random` follows from `update`, the run's
    seed and the update's number, and from the row: in whatever company it is, it looks the same.
    """
    made = [documents(row) for row in rows]
    owners = np.repeat(np.asarray(indices, dtype=np.int64), [len(some) for some in made])
    flat = [document for some in made for document in some]
    media = (
        tuple(
            inputs(row, np.random.default_rng((*update, int(i))) if update else None)
            for row, i in zip(rows, indices, strict=True)
        )
        if inputs
        else ()
    )
    other = [d.mismatched for d in flat if d.mismatched]
    beside = _joined(other, owners, seed, ()) if other else None
    return replace(_joined(flat, owners, seed, media), mismatched=beside)


def _joined(
    flat: Sequence[Document],
    owners: np.ndarray,
    seed: int,
    media: tuple[dict[str, np.ndarray], ...],
) -> Batch:
    """Documents end to end; `owners` (D,): the index of each one's row."""
    targets = [np.array(document.targets, dtype=bool) for document in flat]
    for marks in targets:
        marks[:1] = False
    counted = flat[0].unit is not None
    weighted = any(document.weights is not None for document in flat)
    return Batch(
        ids=np.concatenate([np.asarray(d.ids, dtype=np.int64) for d in flat]),
        targets=np.concatenate(targets),
        lengths=np.asarray([len(d.ids) for d in flat], dtype=np.int64),
        rows=owners,
        seed=seed,
        values={name: np.asarray([d.values[name] for d in flat]) for name in flat[0].values},
        units=np.asarray([d.unit for d in flat], dtype=np.int64) if counted else None,
        weights=np.concatenate(
            [np.ones(len(d.ids)) if d.weights is None else np.asarray(d.weights) for d in flat]
        ).astype(np.float32)
        if weighted
        else None,
        media=media,
    )


def with_mean_ratio(engine: Any, made: Sequence[Batch]) -> Sequence[Batch]:
    """All micro-batches of an update or of an evaluation with the value `mean_ratio`, where the objective needs it:
    the mean of log(p / p_base) over their mismatched documents in all processes, 0 at least. No gradient flows."""
    if not engine.objective.MEAN_RATIO:
        return made
    others = [b.mismatched for b in made if b.mismatched and not b.idle]
    ratios = [-engine.score_documents(o)[:, 0] - o.values["reference"] for o in others]
    mine = (sum(float(r.sum()) for r in ratios), sum(map(len, ratios)))
    total, count = np.sum(engine.gather(mine), axis=0)
    mean = max(0.0, total / max(count, 1))
    return [
        replace(b, values={**b.values, "mean_ratio": np.full(len(b.lengths), mean)}) for b in made
    ]


def pieces(
    lengths: Sequence[int], max_rows: int, max_tokens: int, packing: bool, processes: int = 1
) -> list[list[int]]:
    """Positions grouped into micro-batches of at most `max_rows` rows and `max_tokens` tokens.

    Longest first into the first piece with room (first-fit decreasing); padded, a piece costs rows × longest. With
    several processes a piece is at most a process's share, so that all have work.
    """
    if processes > 1:
        share = -(-sum(lengths) // processes)
        max_tokens, max_rows = (
            min(max_tokens, max(share, *lengths)),
            min(max_rows, -(-len(lengths) // processes)),
        )
    groups: list[list[int]] = []
    costs: list[int] = []  # packed: tokens; padded: the longest row
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for g, group in enumerate(groups):
            cost = costs[g] + lengths[i] if packing else (len(group) + 1) * costs[g]
            if len(group) < max_rows and cost <= max_tokens:
                group.append(i)
                costs[g] += lengths[i] if packing else 0
                break
        else:
            groups.append([i])
            costs.append(lengths[i])
    return groups


class Prefetcher:
    """Calls `make(0)` to `make(count - 1)` in order; a thread makes the next while one is used."""

    def __init__(self, make: Callable[[int], Any], count: int):
        self.make, self.count, self.pool = make, count, ThreadPoolExecutor(1, "prefetch")
        self.next: tuple[int, Future[Any]] | None = None

    def __call__(self, number: int) -> Any:
        waiting, self.next = self.next, None
        made = waiting[1].result() if waiting and waiting[0] == number else self.make(number)
        if number + 1 < self.count:
            self.next = number + 1, self.pool.submit(self.make, number + 1)
        return made


class Batches:
    """`batches[u]` is the list of micro-batches of update u; `len(batches)` the number of updates of the run.

    With several processes it is this one's share; all have equally many, some of them idle.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        lengths: np.ndarray,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        micro_batch_tokens: int,
        packing: bool,
        seed: int,
        epochs: int,
        max_updates: int | None = None,
        rank: int = 0,
        processes: int = 1,
    ):
        self.rows, self.lengths = rows, lengths
        self.global_batch_size, self.seed, self.packing = global_batch_size, seed, packing
        self.micro_batch_size, self.micro_batch_tokens = micro_batch_size, micro_batch_tokens
        self.rank, self.processes = rank, processes
        # A tail smaller than the global batch is an update too.
        self.per_epoch = -(-len(rows) // global_batch_size)
        self.updates = max_updates if max_updates is not None else epochs * self.per_epoch
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self.inputs, self.documents = layout(rows)
        # Pictures and sounds take long to decode.
        self._get = Prefetcher(self._made, self.updates) if self.inputs else self._made

    def __len__(self) -> int:
        return self.updates

    def indices(self, update: int) -> np.ndarray:
        """Rows of one update: the next slice of this epoch's permutation."""
        epoch, place = divmod(update, self.per_epoch)
        order = self._order  # the thread's may differ
        if order[0] != epoch:
            order = self._order = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(len(self.rows)),
            )
        return order[1][place * self.global_batch_size : (place + 1) * self.global_batch_size]

    def tokens(self, update: int) -> int:
        """Input tokens of one update, over all processes."""
        return int(self.lengths[self.indices(update)].sum())

    @property
    def total_tokens(self) -> int:
        """Input tokens of the whole run; of an epoch that is cut, its share."""
        return round(int(self.lengths.sum()) * self.updates / self.per_epoch)

    def __getitem__(self, update: int) -> list[Batch]:
        if not 0 <= update < self.updates:
            raise IndexError(update)
        return self._get(update)

    def _made(self, update: int) -> list[Batch]:
        chosen = self.indices(update)
        groups = pieces(
            self.lengths[chosen].tolist(),
            self.micro_batch_size,
            self.micro_batch_tokens,
            self.packing,
            self.processes,
        )
        mine = list(enumerate(groups))[self.rank :: self.processes]
        batches = [
            self._collated(chosen[group], update, self._seed(update, number))
            for number, group in mine
        ]
        while len(batches) < -(-len(groups) // self.processes):
            batches.append(replace(self._collated(chosen[groups[-1][:1]], update, 0), idle=True))
        return batches

    def _collated(self, indices: np.ndarray, update: int, seed: int) -> Batch:
        return collate(
            [self.rows[i] for i in indices],
            indices,
            seed,
            self.inputs,
            (self.seed, update),
            self.documents,
        )

    def _seed(self, update: int, micro_batch: int) -> int:
        return int(np.random.SeedSequence((self.seed, update, micro_batch)).generate_state(1)[0])


def in_order(
    rows: Sequence[dict[str, Any]],
    lengths: np.ndarray,
    max_rows: int,
    max_tokens: int,
    packing: bool,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """All rows once, for evaluation (or one of so many shares of them); `Batch.rows` says which is which."""
    groups = pieces(lengths.tolist(), max_rows, max_tokens, packing)[share[0] :: share[1]]
    inputs, documents = layout(rows)

    def made(number: int) -> Batch:
        some = [rows[i] for i in groups[number]]
        return collate(some, groups[number], inputs=inputs, documents=documents)

    yield from map(Prefetcher(made, len(groups)) if inputs else made, range(len(groups)))


def layout(rows: Sequence[Row]) -> tuple[Any, Documents]:
    """(what makes the model's inputs of a row's media, the documents of a row); a list of rows has plain ones."""
    if isinstance(rows, Rows):
        return rows.inputs, rows.documents
    return None, next_token.documents
