"""A conversation with a finished run: the model stays loaded, answers come in pieces, earlier turns are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from lorakit import tasks
from lorakit.common import registry
from lorakit.results.ask import replies, tuned
from lorakit.results.evaluate import words

PIECE = 8  # tokens between two pieces of an answer


class Chat:
    """Loads the tuned model at once, and its base when that is first asked.

    Args:
        path: folder of a run.
        system: what the model is told to be; only models for chats read it.
        max_new_tokens: length of an answer at most; None: the run's own.
        model: where the run's base lies now; None: where it was.

    Raises:
        LorakitError: no run is there, or it has nothing saved.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        system: str = "",
        max_new_tokens: int | None = None,
        model: str | None = None,
    ):
        self.path, self.system, self._model = path, system, model
        self._engines: dict[bool, Any] = {}
        self._turns: dict[bool, list[dict[str, str]]] = {True: [], False: []}
        engine, _, self.meta, self.run = tuned(path, model=model)
        self._engines[True] = engine
        self.max_new_tokens = max_new_tokens or self.run.max_new_tokens
        self.task = registry.load("tasks", self.meta["task"])

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def talks(self) -> bool:
        """Whether the model knows turns; else each question stands alone."""
        return (
            self.task.GIVES == "messages" and tasks.objective_of(self.meta["task"]).HEAD != "labels"
        )

    def ask(self, question: str, *, adapted: bool = True) -> Iterator[str]:
        """The answer of the tuned model, or of its base, piece by piece; it is kept as a turn when it is complete."""
        engine = self._engine(adapted)
        if not self.talks:
            yield replies(engine, self.meta, [question], self.max_new_tokens)[0].text
            return
        turns = [*self._turns[adapted], {"role": "user", "content": question}]
        opening = [{"role": "system", "content": self.system}] if self.system else []
        answer = ""
        for text in self._grown(engine, self.task.prompt_ids(engine.tokenizer, opening + turns)):
            yield text[len(answer) :]
            answer = text
        self._turns[adapted] = [*turns, {"role": "assistant", "content": answer}]

    def _grown(self, engine: Any, prompt: list[int]) -> Iterator[str]:
        """The answer so far, after every few tokens; half a character waits for its other half."""
        ids: list[int] = []
        while len(ids) < self.max_new_tokens:
            room = min(PIECE, self.max_new_tokens - len(ids))
            (more,) = engine.generate([prompt + ids], room, self.meta["stop_ids"])
            ids += more
            text = words(ids, engine.tokenizer, self.meta["opening"])
            ended = len(more) < room or len(ids) >= self.max_new_tokens
            if text and (ended or not text.endswith("\ufffd")):
                yield text
            if ended:
                return

    def _engine(self, adapted: bool) -> Any:
        if adapted not in self._engines:
            self._engines[adapted] = tuned(self.path, adapted=adapted, model=self._model)[0]
        return self._engines[adapted]

    def forget(self) -> None:
        """Begins a new conversation."""
        self._turns = {True: [], False: []}

    def close(self) -> None:
        """Frees the memory."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
