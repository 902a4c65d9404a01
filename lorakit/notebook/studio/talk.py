"""A chat in a process of its own that keeps its model loaded: the page stays quick, and its memory can be given back.

    python -m lorakit.notebook.studio.talk RUN_DIR < a JSON request per line > a JSON reply per line

A request is `{"question", "adapted", "system"}` or `{"forget": true}`; replies are `{"piece": text}` and then
`{"end": true}`, or `{"error": text}`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import child_environment


class Talk:
    """The page's side: one process, which is started by the first question."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, question: str, *, adapted: bool = True, system: str = "") -> Iterator[str]:
        """The answer piece by piece. Raises `LorakitError` with the last words of a process that ended."""
        yield from self._said({"question": question, "adapted": adapted, "system": system})

    def forget(self) -> None:
        """Begins a new conversation."""
        if self._child:
            for _ in self._said({"forget": True}):
                pass

    def _said(self, request: dict[str, Any]) -> Iterator[str]:
        with self._lock:
            child = self._started()
            assert child.stdin and child.stdout
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
            for line in child.stdout:
                if not line.startswith("{"):
                    continue  # a library's word
                reply = json.loads(line)
                if "error" in reply:
                    raise LorakitError(reply["error"])
                if "end" in reply:
                    return
                yield reply["piece"]
            self._child = None
            raise LorakitError(
                "the model's process ended, perhaps because memory ran out", cure="ask again"
            )

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "lorakit.notebook.studio.talk", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=child_environment(),
            )
        return self._child

    def close(self) -> None:
        """Ends the process; its memory is free afterwards."""
        if self._child:
            self._child.kill()
            self._child.wait()
            self._child = None


def main(path: str) -> None:
    """The child's side, until its input ends."""
    from lorakit.results.chat import Chat

    def reply(**said: Any) -> None:
        print(json.dumps(said), flush=True)

    chat = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            chat = chat or Chat(path)
            if request.get("forget"):
                chat.forget()
            else:
                chat.system = request["system"]
                for piece in chat.ask(request["question"], adapted=request["adapted"]):
                    reply(piece=piece)
            reply(end=True)
        except Exception as error:  # the page says it and goes on
            words = (
                str(error)
                if isinstance(error, LorakitError)
                else f"{type(error).__name__}: {error}"
            )
            reply(error=words)


if __name__ == "__main__":
    main(sys.argv[1])
