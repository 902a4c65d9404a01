"""What a row trains, one module each.

Contract: `GIVES`, the field of an `Example` it takes; `OBJECTIVE`, what an engine must serve (`tokens`: predict the
marked tokens; `labels`: predict a class); `MEDIUM`, what comes with the words: "", `image` or `sound`; `UNIT`, what is
counted; `METRICS`, scored unless the run names others; `COLUMNS`, the kind of each column of a row (`["int32"]` is a
list); `encode(example, reader, max_length)` gives rows and raises `BadRow`; `ask(question, reader)` is a row for a
question put by a person, ready for an answer. `reader` is the model's tokenizer, or its processor where there is a
medium; settings of the run that `encode` also takes, by name, stand in `SETTINGS`.

Of tokens: `guard(rows, tokenizer)` raises `LorakitError` when training on these rows would be pointless;
`stop_ids(rows, tokenizer)` lists the tokens that end an answer; `opening(tokenizer)` is the token after which its words
begin, or None. Of a medium: `inputs(row, processor, random)` are the model's inputs by name, NumPy arrays whose first
axis grows with the row; `random`, a NumPy generator, is there in training only. Optional: `suits(processor)`, whether
the task can be with this processor.

A row of a token task holds `ids` (T,) and `targets` (T,), true where the token is trained. A row with an answer to
generate also holds `answer_start`, `prompt` and `reference`; `weights` (T,) where tokens count otherwise than once, and
`lost`, keys of `template.LOST`, where the chat template did not write all that the row says. A row of a label task
holds `ids` and, in `reference`, the name of its class. With a medium a row holds `media`, the bytes of each, and where
`ids` do not tell, in `length`, how many places the model goes through for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorakit.common.errors import LorakitError

# Modules of this package that are not tasks.
HELPERS = ("batches", "dataset", "preview", "rows", "template")


def settings_of(task: Any, run: Any) -> dict[str, Any]:
    """The settings of a run that a task's `encode` takes."""
    return {name: getattr(run, name) for name in getattr(task, "SETTINGS", ())}


def guard_classes(rows: Iterable[dict], tokenizer: Any) -> None:
    """Refuses rows of one class, where there is nothing to tell apart, and rows that hardly share one."""
    names = [row["reference"] for row in rows]
    found = set(names)
    if len(found) > max(2, len(names) / 2):
        raise LorakitError(
            f"{len(found)} classes in {len(names)} training rows, e.g. {min(found)[:60]!r}: these are "
            "none; name the column that holds them, e.g. columns: {label: kind}"
        )
    if len(found) < 2:
        raise LorakitError(
            f"every training row is of the class {next(iter(found), None)!r}: there is nothing to tell "
            "apart"
        )


def none(rows: Iterable[dict], tokenizer: Any) -> list[int]:
    """No token ends what is no text."""
    return []
