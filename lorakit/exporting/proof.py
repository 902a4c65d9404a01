"""What a tuned model and its export are both asked: the run's own rows, and texts unlike them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.locations import PACKAGE
from lorakit.exporting.modelfile import begins_every_text
from lorakit.exporting.source import Source
from lorakit.models import base_model
from lorakit.models.rendering import rendered
from lorakit.results.evaluate import prompts
from lorakit.tasks.rows import Rows

TEXTS = PACKAGE / "assets" / "proof_texts.txt"  # prose, code, records, several scripts, emoji
SEPARATOR = "\n---\n"
LONGEST = 1024  # tokens of a row that are looked at, its last ones
TEXT_TOKENS = 96  # of each text
ANSWERS = 24  # prompts that are answered at most
ANSWER_TOKENS = 48  # of an answer at most
SECONDS = 20.0  # of this thread, for each model that is asked
TURNS = (
    ({"role": "user", "content": "Is the road open?"},),
    (
        {"role": "user", "content": "Is the road open?"},
        {"role": "assistant", "content": "Yes – since noon."},
        {"role": "user", "content": "Für Lastwagen?"},
    ),
)
SYSTEM = {"role": "system", "content": "Answer briefly."}


@dataclass(frozen=True)
class ProofRow:
    """A row of token ids; the loss is taken over its targets."""

    ids: list[int]
    targets: list[bool]
    own: bool  # of the run, not a text unlike its rows


@dataclass(frozen=True)
class Proof:
    """Everything that a process needs to ask a model, without the run or its tokenizer.

    Attributes:
        rows: own rows and texts in turn, so that the first few hold both.
        first_token: text of the token that the tokenizer puts before every text by itself.
        texts: (text, the token ids that training reads it as, whether it is one of the run's).
        conversations: turns -> how the chat template writes them, asking for an answer.
        positions: of the model, for prompt and answer together; 0 when unlimited.
        inputs: of a classifier, one row's arrays each; `labels` its rows' classes.
        folder: the run's.
        seconds: of this thread, for rows and for answers each a half.
    """

    rows: list[ProofRow] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    stop_ids: list[int] = field(default_factory=list)
    max_new_tokens: int = ANSWER_TOKENS
    positions: int = 0
    first_token: str = ""
    texts: list[tuple[str, list[int], bool]] = field(default_factory=list)
    conversations: list[tuple[list[dict[str, str]], str]] = field(default_factory=list)
    inputs: list[dict[str, np.ndarray]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    folder: str = ""
    base: str = ""
    seconds: float = SECONDS
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, or prompt with its answer."""
        rows = [len(row.ids) for row in self.rows]
        asked = [len(prompt) + self.max_new_tokens for prompt in self.prompts]
        return max([*rows, *asked, 64])

    def answer_tokens(self, prompt: Sequence[int]) -> int:
        """How many tokens the answer to a prompt may have."""
        room = self.positions - len(prompt) if self.positions else self.max_new_tokens
        return max(1, min(self.max_new_tokens, room))

    def write(self, folder: Path) -> None:
        content = asdict(self) | {"inputs": len(self.inputs)}
        (folder / "proof.json").write_text(json.dumps(content, default=str), encoding="utf-8")
        for i, arrays in enumerate(self.inputs):
            np.savez(folder / f"inputs{i}.npz", **arrays)  # type: ignore[arg-type]  # numpy types every keyword as bool

    @classmethod
    def read(cls, folder: Path) -> Proof:
        content = json.loads((folder / "proof.json").read_text(encoding="utf-8"))
        inputs = []
        for i in range(content.pop("inputs")):
            with np.load(folder / f"inputs{i}.npz") as arrays:
                inputs.append({name: arrays[name] for name in arrays.files})
        content["rows"] = [ProofRow(**row) for row in content["rows"]]
        return cls(**content, inputs=inputs)


def proof_of(source: Source) -> Proof:
    """The proof of a run: of a classifier its rows' inputs, of others rows, texts, prompts and conversations."""
    own, options = source.own_rows, dict(source.options)
    common: dict[str, Any] = {
        "stop_ids": [int(i) for i in source.meta["stop_ids"]],
        "folder": str(source.folder.path),
        "base": source.run.model,
        "seconds": float(options.get("proof_seconds") or SECONDS),
        "options": options,
    }
    if source.classes:
        return Proof(
            inputs=[inputs_of(row, own) for row in own],
            labels=[int(row["label"]) for row in own],
            **common,
        )
    config = base_model.config(source.run.model).get_text_config()
    asked = [prompt[-LONGEST:] for prompt in prompts(own.first(ANSWERS))]
    mine = [
        ProofRow(
            [int(i) for i in row["ids"][-LONGEST:]],
            [False, *map(bool, row["targets"][-LONGEST:][1:])],
            True,
        )
        for row in own
    ]
    return Proof(
        rows=_in_turn(mine, _other_rows(source.tokenizer)),
        prompts=asked,
        max_new_tokens=min(ANSWER_TOKENS, source.run.max_new_tokens),
        positions=int(getattr(config, "max_position_embeddings", 0) or 0),
        first_token=source.tokenizer.bos_token if begins_every_text(source.tokenizer) else "",
        texts=_read_texts(source.tokenizer, own),
        conversations=conversations(source.tokenizer) if source.chats else [],
        **common,
    )


def inputs_of(row: Mapping[str, Any], rows: Rows) -> dict[str, np.ndarray]:
    """What a classifier reads of a row: token ids (1, T), or the picture."""
    if rows.inputs:
        return rows.inputs(dict(row), None)
    ids = np.asarray(row["ids"], dtype=np.int64)[None]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def conversations(tokenizer: Any) -> list[tuple[list[dict[str, str]], str]]:
    """One and two questions, with and without a system turn, where the template takes one."""
    found = []
    for system in ((), (SYSTEM,)):
        for turns in TURNS:
            messages = [*system, *turns]
            try:
                text = rendered(tokenizer, messages, add_generation_prompt=True)
            except Exception:  # a template may refuse the role
                continue
            found.append((messages, text))
    return found


def unlike_texts() -> list[str]:
    """Texts unlike any run's rows: prose, code, records, several scripts, emoji."""
    return TEXTS.read_text(encoding="utf-8").strip("\n").split(SEPARATOR)


def _other_rows(tokenizer: Any) -> list[ProofRow]:
    ids = [tokenizer(text)["input_ids"][:TEXT_TOKENS] for text in unlike_texts()]
    return [
        ProofRow(each, [False] + [True] * (len(each) - 1), False) for each in ids if len(each) > 1
    ]


def _read_texts(tokenizer: Any, own: Rows) -> list[tuple[str, list[int], bool]]:
    """(text, its token ids, whether it is of the run)."""
    texts = [(tokenizer.decode(row["ids"].tolist()), True) for row in own]
    texts += [(text, False) for text in unlike_texts()]
    return [
        (text, tokenizer(text, add_special_tokens=False)["input_ids"], mine) for text, mine in texts
    ]


def _in_turn(own: list[ProofRow], others: list[ProofRow]) -> list[ProofRow]:
    longer = max(len(own), len(others))
    return [row for i in range(longer) for rows in (own, others) for row in rows[i : i + 1]]
