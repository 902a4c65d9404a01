"""The live panel: the curve drawn in place in a notebook, a line of text in a terminal or without a screen."""

from __future__ import annotations

import sys
import time
from typing import Any

from lorakit.record import Folder
from lorakit.report import loss_png


class Panel:
    """Draws a run from its files. In a notebook the picture replaces itself; what stays is its last state."""

    def __init__(self, folder: Folder):
        self.folder, self._handle, self._text, self._seen = folder, None, None, -1
        self._width = 0
        self._next = 0.0  # when the picture may be drawn again: a twentieth of the time at most goes into it

    def draw(self, status: str, *, last: bool = False) -> None:
        updates, validations = self.folder.history()
        line = self.line(status, updates, validations)
        if not in_notebook():
            if len(updates) != self._seen or last:
                text = "\r" + line.ljust(self._width)  # over the line before
                print(text, end="\n" if last else "", file=sys.stderr, flush=True)
                self._seen, self._width = len(updates), len(line)
            return
        from IPython.display import Image, display

        content: dict[str, Any] = {"text/plain": line, "text/html": f"<code>{line}</code>"}
        if self._text is None:
            self._text = display(content, raw=True, display_id=True)
        else:
            self._text.update(content, raw=True)
        if updates and (last or (len(updates) != self._seen and time.monotonic() > self._next)):
            begun = time.monotonic()
            image = Image(data=loss_png(self.folder, self.folder / "loss.png").read_bytes(), width=900)
            if self._handle is None:
                self._handle = display(image, display_id=True)
            else:
                self._handle.update(image)
            self._seen = len(updates)
            self._next = time.monotonic() + 20 * (time.monotonic() - begun)

    def line(self, status: str, updates: list[dict], validations: list[dict]) -> str:
        """`running · update 40 of 150 · loss 2.310 · validation 2.402 · 5,210 tokens/s · 12 s left`"""
        parts = [status]
        planned = self.folder.record.get("updates_planned")
        if updates:
            parts += [f"update {updates[-1]['update']}" + (f" of {planned}" if planned else ""),
                      f"loss {updates[-1]['loss']:.3f}"]
        if validations:
            parts.append(f"validation {validations[-1]['validation_loss']:.3f}")
        if updates:
            recent = updates[-20:]
            seconds = sum(u["seconds"] for u in recent)
            parts.append(f"{sum(u['target_tokens'] for u in recent) / max(seconds, 1e-9):,.0f} target tokens/s")
            if status == "running" and planned and planned > updates[-1]["update"]:
                parts.append(f"{(planned - updates[-1]['update']) * seconds / len(recent):,.0f} s of training left")
        return " · ".join(parts)


def in_notebook() -> bool:
    """Whether a Jupyter kernel is running this."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and shell.__class__.__name__ != "TerminalInteractiveShell"
