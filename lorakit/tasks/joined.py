"""Documents end to end for continued pretraining, as GPT-3's were (arXiv 2005.14165 §B): rows of full length.

A document follows the token that ended the one before and is trained from its first token on. Attention crosses the
boundaries, which is what keeps rows full; validation and test documents stay apart.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.tasks.protocol import Task
from lorakit.tasks.rows import Rows, quiet


def joined(rows: Rows, task: Task, max_length: int, seed: int) -> tuple[Rows, str]:
    """(training rows of `max_length` tokens, a note). Documents are shuffled by seed; sources stay apart.

    Raises `LorakitError` for a task whose rows are no plain text.
    """
    import datasets

    if task.GIVES != "text":
        raise LorakitError(
            "only plain text can be joined: rows with a prompt stay apart",
            setting="join_documents",
            value=True,
            cure="leave it out, or set task: text",
        )
    names = [n for n in ("file", "row", "group", "source") if n in rows.dataset.column_names]
    whose = list(zip(*(rows.column(n) for n in names), strict=True))
    each = zip(whose, rows.column("ids"), strict=True)
    documents = [
        (dict(zip(names, who, strict=True)), _whole([ids for _, ids in pieces]))
        for who, pieces in groupby(each, key=lambda piece: piece[0])
    ]
    out: list[dict[str, Any]] = []
    for source in dict.fromkeys(about.get("source") for about, _ in documents):
        mine = [d for d in documents if d[0].get("source") == source]
        order = np.random.default_rng((seed, 6)).permutation(len(mine))
        stream = np.concatenate([mine[i][1] for i in order])
        starts = np.cumsum([0, *(len(mine[i][1]) for i in order)])[1:]
        for begin in range(0, len(stream) - 1, max_length - 1):
            ids = stream[begin : begin + max_length]
            first = order[np.searchsorted(starts, begin, side="right")]
            targets = [False] + [True] * (len(ids) - 1)
            out.append(mine[first][0] | {"ids": ids, "targets": targets, "cut": 0})
    features = rows.dataset.features
    made = {name: [row.get(name) for row in out] for name in features}
    with quiet():
        return Rows(datasets.Dataset.from_dict(made, features)), (
            f"train: {len(documents):,} documents end to end in {len(out):,} rows; attention crosses their boundaries"
        )


def _whole(pieces: list[list[int]]) -> list[int]:
    """The tokens of a document from its pieces, each of which begins with the last token of the one before."""
    return [*pieces[0], *(token for piece in pieces[1:] for token in piece[1:])]
