"""Equal rows, equal prompts and near duplicates, by a row's own content.

Equal: every character, role, reasoning and label. Near: Jaccard index of 3-grams of the last question, its answer and
the reasoning, estimated by MinHash; of pictures a perceptual hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from lorakit.data import media, minhash
from lorakit.data.example import Example
from lorakit.data.report import shown

NEAR = 0.8  # Jaccard index from which two rows count as near duplicates
MOST = 0.8  # share of the rows; a prompt of more is the task itself, and tells no rows apart
SHORT = 200  # characters of a last question and its answer
ENDS = " .,;:!?…。，？！؟،"  # with or without them a question is the same
THOUGHTS = ("reasoning_content", "thinking")
SAID = ("content", "tool_calls")


def turns(example: Example) -> list[dict[str, Any]]:
    """The turns of a conversation, none for other rows."""
    return example.fields.get("messages") or example.fields.get("turns") or []


def text(example: Example) -> str:
    """All the words of an example."""
    fields, found = example.fields, turns(example)
    if not found:
        return "\n".join(filter(None, (fields.get("question"), fields["text"])))
    if "pair" in fields:
        found = [*found, fields["pair"]["rejected"]]
    return "\n".join(m.get("content") or json.dumps(m.get("tool_calls")) for m in found)


def own(example: Example) -> str:
    """The last question, its answer and the reasoning: what is not the system turn's or an earlier turn's.

    Where those are short ("Thanks!"), they say little, and earlier turns are taken in.
    """
    found = turns(example)
    if not found:
        return text(example)
    words = ""
    for first in reversed(range(len(found))):
        if found[first]["role"] == "user" and len(words) < SHORT:
            words = "\n".join(
                str(turn[key])
                for turn in found[first:]
                for key in (*THOUGHTS, *SAID)
                if turn.get(key)
            )
    return words


def normal(words: str) -> str:
    """Case and white space aside."""
    return " ".join(words.casefold().split())


def _hashed(parts: Iterable[str]) -> int:
    words = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest())


def _media(example: Example) -> list[str]:
    return [medium["sha256"] for medium in example.fields.get("media", ())]


def fingerprint(example: Example) -> int:
    """64 bits that equal examples share."""
    fields, found = example.fields, turns(example)
    if "pair" in fields:
        found = [*found, fields["pair"]["rejected"]]
    words = (
        [str(part) for turn in found for pair in turn.items() for part in pair]
        if found
        else [str(fields.get("question")), fields["text"]]
    )
    offered = [str(fields["tools"])] if "tools" in fields else []
    return _hashed([*words, *offered, str(fields.get("label")), *_media(example)])


def prompt_key(example: Example) -> int:
    """64 bits that examples of an equal prompt share, case, white space and signs at its ends aside; 0 where nothing
    is asked.

    The prompt is the last question with the turns before it; a system turn does not count.
    """
    found = turns(example)
    turns_before = [m for m in found[:-1] if m["role"] != "system"]
    asked = [str(m[key]) for m in turns_before for key in SAID if m.get(key) is not None]
    if not any(asked):
        return 0
    words = (normal(turn).strip(ENDS) or turn for turn in asked)
    return _hashed([*words, *_media(example)]) or 1


def duplicates(fingerprints: Sequence[int] | np.ndarray) -> dict[int, int]:
    """Index of every exact repetition -> index of the first."""
    _, first, group = np.unique(
        np.asarray(fingerprints, dtype=np.uint64), return_index=True, return_inverse=True
    )
    again = np.flatnonzero(first[group] != np.arange(len(group)))
    return {int(i): int(first[group[i]]) for i in again}


def same_prompt(keys: np.ndarray) -> np.ndarray:
    """(pairs, 2): each row with an equal prompt, and the first that has it. A prompt of most rows does not count."""
    keys = np.asarray(keys, dtype=np.uint64)
    _, first, group, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    counts = (keys != 0) & (sizes[group] <= MOST * len(keys))
    again = np.flatnonzero(counts & (first[group] != np.arange(len(group))))
    return np.stack([first[group[again]], again], axis=1)


def joined(n: int, pairs: Iterable[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """(n,) for each of n things the smallest index among those it is linked to, directly or by others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(
        pairs if isinstance(pairs, np.ndarray) else list(pairs), dtype=np.int64
    ).reshape(-1, 2)
    _, group = connected_components(
        coo_array((np.ones(len(ends), bool), ends.T), shape=(n, n)), directed=False
    )
    return np.unique(group, return_index=True)[1][group]


class _Words(Sequence[str]):
    """The own words of examples, read when they are asked for."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return normal(own(self.examples[index]))

    def __iter__(self):
        return (normal(own(e)) for e in shown(self.examples, "near duplicates"))


def near_pairs(examples: Sequence[Example], least: float = NEAR) -> list[tuple[int, int]]:
    """Pairs of near duplicates, enough of them to link each with all it resembles."""
    if len(examples) and "media" in examples[0].fields:  # their words repeat, their pictures do not
        first = [example.fields["media"][0]["look"] for example in examples]
        return media.alike(first)
    return minhash.pairs(_Words(examples), least)
