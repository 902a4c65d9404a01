"""The test rows asked again in other words: with typing errors, in capitals, without punctuation, cut, out of order.

Every change takes a `share` from 0, which changes nothing, to 1, and what a small share changes a larger one changes
too. What is right stays what it was: whether it still can be known is for the reader to judge.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lorakit.common import registry
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.data import loading
from lorakit.data.example import Example
from lorakit.data.matching import columns_of
from lorakit.data.sources import of_run
from lorakit.models import base_model
from lorakit.results.ask import tuned
from lorakit.results.compare import outcome
from lorakit.results.evaluate import Outcome
from lorakit.results.predict import predict
from lorakit.run import Run, resolved
from lorakit.runs.folder import Folder
from lorakit.tasks import rows

LONGER = 4  # times max_length: a tokenizer needs more tokens for capitals and for words that it does not know
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def typos(words: str, share: float, rng: np.random.Generator) -> str:
    """Letters swapped with the next, left out, doubled, or replaced by their neighbour on the keyboard."""
    hit, kind = rng.random(len(words)) < share, rng.integers(4, size=len(words))
    out, place = [], 0
    while place < len(words):
        letter, after = words[place], words[place + 1 : place + 2]
        if not (hit[place] and letter.isalpha()):
            out.append(letter)
        elif kind[place] == 0 and after.isalpha():
            out.append(after + letter)
            place += 1
        else:
            out.append(("", "", 2 * letter, _neighbour(letter))[kind[place]])
        place += 1
    return "".join(out)


def _neighbour(letter: str) -> str:
    row = next((keys for keys in KEYS if letter.lower() in keys), letter.lower())
    place = row.index(letter.lower())
    found = row[place + 1] if place + 1 < len(row) else row[place - 1]
    return found.upper() if letter.isupper() else found


def lower(words: str, share: float, rng: np.random.Generator) -> str:
    """Words without capitals."""
    return _each(words, share, rng, str.lower)


def upper(words: str, share: float, rng: np.random.Generator) -> str:
    """Words in capitals."""
    return _each(words, share, rng, str.upper)


def _each(words: str, share: float, rng: np.random.Generator, change: Callable[[str], str]) -> str:
    parts = words.split(" ")
    return " ".join(
        change(p) if hit else p
        for p, hit in zip(parts, rng.random(len(parts)) < share, strict=True)
    )


def punctuation(words: str, share: float, rng: np.random.Generator) -> str:
    """Marks left out."""
    hit = rng.random(len(words)) < share
    return "".join(
        c for c, lost in zip(words, hit, strict=True) if not lost or c.isalnum() or c.isspace()
    )


def cut(words: str, share: float, rng: np.random.Generator) -> str:
    """The end left out; one word stays."""
    parts = words.split(" ")
    return " ".join(parts[: max(1, round((1 - share) * len(parts)))])


def order(words: str, share: float, rng: np.random.Generator) -> str:
    """Words that change places with each other."""
    parts = np.array(words.split(" "), dtype=object)
    places = np.flatnonzero(rng.random(len(parts)) < share)
    parts[places] = parts[rng.permutation(places)]
    return " ".join(parts)


KINDS: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    f.__name__: f for f in (typos, lower, upper, punctuation, cut, order)
}


def changed(words: str, kind: str, share: float, seed: int = 0) -> str:
    """A text after one of `KINDS`; the same text and seed always give the same."""
    if kind not in KINDS:
        raise LorakitError(
            f"there is no change '{kind}'{did_you_mean(kind, KINDS)} Present: {', '.join(KINDS)}"
        )
    if not 0 <= share <= 1:
        raise LorakitError(f"{kind}: share={share!r} must lie between 0 and 1")
    return KINDS[kind](
        words, share, np.random.default_rng((seed, zlib.crc32(words.encode("utf-8", "replace"))))
    )


def asked(fields: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """An example's fields with each question, or the text that has a label, changed; answers are left alone."""
    if "messages" in fields:
        return {
            **fields,
            "messages": [
                {**m, "content": change(m["content"])}
                if m["role"] == "user" and isinstance(m["content"], str)
                else m
                for m in fields["messages"]
            ],
        }
    if "label" in fields and "text" in fields:
        return {**fields, "text": change(fields["text"])}
    raise LorakitError(
        "only questions and texts with a label can be asked in other words; plain text has neither"
    )


def answered(
    path: Any, changes: Mapping[str, tuple[str, float]], *, seed: int = 0
) -> tuple[list[str | None], dict[str, Outcome]]:
    """(references, name -> what the tuned model did) on a finished run's test rows, `unchanged` first.

    `changes` maps a name to a kind and its share. The outcomes are paired row by row: see `evaluate.entry`. Raises
    `LorakitError` for a run without scores, and when its data is not what it was.
    """
    folder = Folder.of(path)
    first, known = outcome(folder)
    references, found = [row["reference"] for row in known], {"unchanged": first}
    run = Run.read(folder / "run.yaml")
    sets, meta = rows.read(folder / "rows")
    task = registry.load("tasks", meta["task"])
    if task.MEDIUM:
        raise LorakitError(
            f"{folder.path}: its rows are {task.MEDIUM}s; only words can be asked in other words"
        )
    examples = _examples(run, task, sets["test"])
    engine, tokenizer, _, run = tuned(folder.path)

    def encoded(change: Callable[[str], str], max_length: int) -> rows.Rows:
        asking = [e.with_fields(asked(e.fields, change)) for e in examples]
        made, _, _ = rows.encode({"train": asking}, task, tokenizer, max_length)
        return rows.Rows(made["train"].dataset, classes=meta["classes"])

    if encoded(lambda words: words, run.max_length).contents() != sets["test"].contents():
        raise LorakitError(
            f"{run.data}: its rows are not those that {folder.path} was tested on; put the file back"
        )
    positions = getattr(
        base_model.config(run.model).get_text_config(), "max_position_embeddings", None
    )
    longest = min(LONGER * run.max_length, positions or LONGER * run.max_length)
    for name, (kind, share) in changes.items():
        test = encoded(lambda words: changed(words, kind, share, seed), longest)  # noqa: B023
        if len(test) != len(references):
            raise LorakitError(
                f"{name}: of {len(references)} rows {len(test)} are left; take a smaller share"
            )
        found[name] = predict(
            engine,
            test,
            meta,
            tokenizer,
            max_tokens=resolved(run.micro_batch_tokens),
            max_new_tokens=run.max_new_tokens,
            when=name,
        )
    engine.close()
    return references, found


def _examples(run: Run, task: Any, test: rows.Rows) -> list[Example]:
    """The examples that the test rows were made of, in their order."""
    sources = of_run(
        run.data, run.validation_data, run.test_data, run.format, run.replay, run.media_folder
    )
    it = sources.get("test", sources["train"])
    wanted = dict.fromkeys(zip(test.column("file"), test.column("row"), strict=True))
    found = {
        (e.file, e.row): e
        for e in loading.read(it, **columns_of(run), gives=task.GIVES).rows
        if isinstance(e, Example) and (e.file, e.row) in wanted
    }
    lost = next((f"{file}:{row}" for file, row in wanted if (file, row) not in found), None)
    if lost:
        raise LorakitError(
            f"{lost}: is a test row, and not to be found any more; put the file back"
        )
    return [found[key] for key in wanted]
