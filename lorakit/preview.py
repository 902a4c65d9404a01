"""The mask made visible: what of a row is trained, in colour, in a notebook and in a terminal."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

TRAINED = "#c8f0cf"  # green behind trained tokens; grey text elsewhere


class Preview:
    """One row's tokens. Shown as HTML by a notebook, with ANSI colours by `print`."""

    def __init__(self, ids: list[int], targets: list[bool], tokenizer: Any):
        self.spans = list(_spans(list(map(int, ids)), list(map(bool, targets)), tokenizer))
        self.trained, self.total = sum(map(bool, targets)), len(ids)

    def __str__(self) -> str:
        text = "".join(f"\x1b[30;42m{t}\x1b[0m" if on else f"\x1b[2m{t}\x1b[0m" for t, on in self.spans)
        return f"{text}\n[{self.trained} of {self.total} tokens trained]"

    def _repr_html_(self) -> str:
        parts = [f'<span style="background:{TRAINED};color:#0b3d17">{html.escape(t)}</span>' if on
                 else f'<span style="color:#767676">{html.escape(t)}</span>' for t, on in self.spans]
        return ('<pre style="white-space:pre-wrap;line-height:1.5">' + "".join(parts) + "</pre>"
                f"<p><small>{self.trained} of {self.total} tokens are trained (green)</small></p>")


def _spans(ids: list[int], targets: list[bool], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """(text, trained) runs. Ids are decoded a run at a time, so that characters of several tokens stay whole."""
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or targets[end] != targets[start]:
            # Decoding with what precedes keeps the leading space that many tokenizers drop at a start.
            before = tokenizer.decode(ids[:start], skip_special_tokens=False)
            whole = tokenizer.decode(ids[:end], skip_special_tokens=False)
            run = whole[len(before):] if whole.startswith(before) else tokenizer.decode(ids[start:end])
            yield run, targets[start]
            start = end
