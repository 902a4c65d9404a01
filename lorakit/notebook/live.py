"""The live panel: the curve drawn in place in a notebook, a line of text in a terminal or without a screen.

What it shows is HTML that every frontend knows (JupyterLab, Notebook 7, Colab, Kaggle, VS Code), no widget; what stays
in the notebook is a PNG and the line of text.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from lorakit.notebook.curve import svg
from lorakit.results.report import loss_png, unit
from lorakit.runs.folder import Folder
from lorakit.runs.phases import TRAINING, Phase, phase, spoken

EVERY = 1.0  # seconds between two pictures at least
SHARE = 0.01  # of the time at most goes into pictures


class Tail:
    """`history.jsonl`, read on from where it was read last. A run that goes on writes it anew: then from the start."""

    def __init__(self, folder: Folder):
        self.path = folder / "history.jsonl"
        self._begin(None)

    def _begin(self, inode: int | None) -> None:
        self._file, self._place = inode, 0
        self.updates: list[dict] = []
        self.validations: list[dict] = []

    def read(self) -> tuple[list[dict], list[dict]]:
        """(a line per update, a line per validation), as `Folder.history`. A damaged line is passed over."""
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._file or about.st_size < self._place:
                    self._begin(about.st_ino)
                file.seek(self._place)
                whole = file.read().rpartition(b"\n")[0]
                self._place += len(whole) + bool(whole)
        except FileNotFoundError:
            self.updates, self.validations = [], []
            return self.updates, self.validations
        for line in whole.split(b"\n"):
            self._take(line)
        return self.updates, self.validations

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict) and "update" in found:
            kind = (
                self.updates
                if "loss" in found
                else self.validations
                if "validation_loss" in found
                else []
            )
            kind.append(found)


class Curve:
    """The picture of the moment, as HTML that takes the page's own colours."""

    def __init__(self, drawn: str, words: str):
        self.drawn, self.words = drawn, words

    def _repr_html_(self) -> str:
        return self.drawn

    def __repr__(self) -> str:
        return self.words


class Panel:
    """Draws a run from its files. In a notebook the picture replaces itself; what stays is its last state."""

    def __init__(self, folder: Folder):
        self.folder, self.tail = folder, Tail(folder)
        self._handle, self._text, self._seen, self._width = None, None, -1, 0
        self._next = 0.0  # when the picture may be drawn again

    def draw(self, status: str, *, last: bool = False) -> None:
        updates, validations = self.tail.read()
        line = self.line(status, updates, validations)
        if not in_notebook():
            if len(updates) != self._seen or last:
                text = "\r" + line.ljust(self._width)  # over the line before
                print(text, end="\n" if last else "", file=sys.stderr, flush=True)
                self._seen, self._width = len(updates), len(line)
            return
        from IPython.display import Image, display

        content: dict[str, Any] = {
            "text/plain": line,
            "text/html": f"<code>{html.escape(line)}</code>",
        }
        if self._text is None:
            self._text = display(content, raw=True, display_id=True)
        else:
            self._text.update(content, raw=True)
        if updates and (last or (len(updates) != self._seen and time.monotonic() > self._next)):
            begun = time.monotonic()
            picture = (
                Image(data=loss_png(self.folder, self.folder / "loss.png").read_bytes(), width=900)
                if last
                else Curve(self.picture(line), line)
            )
            if self._handle is None:
                self._handle = display(picture, display_id=True)
            else:
                self._handle.update(picture)
            now, self._seen = time.monotonic(), len(updates)
            self._next = now + max(EVERY, (now - begun) / SHARE)

    def picture(self, words: str) -> str:
        """The curve and, below it, what else is known of the moment."""
        updates, validations = self.tail.updates, self.tail.validations
        drawn = svg(updates, validations, self.folder.record.get("updates_planned"), words)
        return f"<div>{drawn}<div>{html.escape(' · '.join(facts(updates)))}</div></div>"

    def line(self, status: str, updates: list[dict], validations: list[dict]) -> str:
        """`3/5 train · update 40 of 150 · loss 2.310 · validation 2.402 · 5,210 tokens/s · 12 s left`"""
        now = phase(self.folder, len(updates))
        return facts_line(
            self.folder, now, updates, validations, "" if status == "running" else status
        )


def facts_line(
    folder: Folder, now: Phase, updates: list[dict], validations: list[dict], status: str = ""
) -> str:
    """Phase (or a status in its place), update, losses, speed and what is left, in one line."""
    record = folder.record
    parts, planned = [status or str(now)], record.get("updates_planned")
    if updates:
        recent = updates[-20:]
        seconds = sum(u["seconds"] for u in recent)
        rate = sum(u["target_tokens"] for u in recent) / max(seconds, 1e-9)
        of = f" of {planned:,}" if planned else ""
        parts += [f"update {updates[-1]['update']:,}{of}", f"loss {updates[-1]['loss']:.3f}"]
        parts += [f"validation {validations[-1]['validation_loss']:.3f}"] if validations else []
        parts.append(f"{rate:,.0f} {unit(record)}s/s")
        if not status and planned and now.place == TRAINING:
            left = (planned - updates[-1]["update"]) * seconds / len(recent)
            parts.append(f"{spoken(left)} of training left")
    elif validations:
        parts.append(f"validation {validations[-1]['validation_loss']:.3f}")
    return " · ".join(parts)


def facts(updates: list[dict]) -> list[str]:
    """`learning rate 1.2e-04`, `gradient 0.81`, `memory 3.20 GB`, `GPU 87 %, 5.1 of 15.0 GB`: what the run tells."""
    last = updates[-1] if updates else {}
    out = [
        words.format(last[name])
        for name, words in (
            ("learning_rate", "learning rate {:.1e}"),
            ("grad_norm", "gradient {:.2f}"),
        )
        if last.get(name) is not None
    ]
    out += [f"memory {last['memory_bytes'] / 1e9:.2f} GB"] if last.get("memory_bytes") else []
    skipped = sum(bool(u.get("skipped")) for u in updates[-1000:])
    return out + ([f"{skipped} updates skipped"] if skipped else []) + cards.read()


class Cards:
    """How busy the cards are, by `nvidia-smi`; asked every few seconds, since asking takes 50 ms."""

    def __init__(self):
        self.known, self._next = [], 0.0

    def read(self) -> list[str]:
        if time.monotonic() < self._next:
            return self.known
        self._next = time.monotonic() + (10 if shutil.which("nvidia-smi") else 3600)
        try:
            out = subprocess.run(
                [
                    "nvidia-smi",
                    "--query-gpu=utilization.gpu,memory.used,memory.total",
                    "--format=csv,noheader,nounits",
                ],
                capture_output=True,
                text=True,
                timeout=2,
            ).stdout
            self.known = [
                f"GPU {use} %, {int(used) / 1024:.1f} of {int(of) / 1024:.1f} GiB"
                for use, used, of in (line.split(", ") for line in out.splitlines())
            ]
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self.known = []
        return self.known


cards = Cards()


def in_notebook() -> bool:
    """Whether a Jupyter kernel is running this."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and shell.__class__.__name__ != "TerminalInteractiveShell"
