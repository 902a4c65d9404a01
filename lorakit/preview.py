"""The mask made visible: what of a row is trained, in colour, in a notebook and in a terminal."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

TRAINED = "#c8f0cf"  # green behind trained tokens; grey text elsewhere
# A terminal obeys control characters: data shows them as pictures (U+2400 on), or not at all (C1).
SHOWN = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {c: "\ufffd" for c in range(0x7f, 0xa0)}


class Preview:
    """One row's tokens. Shown as HTML by a notebook, with ANSI colours by `print`."""

    def __init__(self, ids: list[int], targets: list[bool], tokenizer: Any):
        self.spans = list(_spans(list(map(int, ids)), list(map(bool, targets)), tokenizer))
        self.trained, self.total = sum(map(bool, targets)), len(ids)

    def __str__(self) -> str:
        spans = [(t.translate(SHOWN), on) for t, on in self.spans]
        text = "".join(f"\x1b[30;42m{t}\x1b[0m" if on else f"\x1b[2m{t}\x1b[0m" for t, on in spans)
        return f"{text}\n[{self.trained} of {self.total} tokens trained]"

    def __repr__(self) -> str:
        """Without colours: what is trained stands in ⟦ ⟧."""
        text = "".join(f"⟦{t}⟧" if on else t for t, on in self.spans)
        return f"{text}\n[{self.trained} of {self.total} tokens trained]"

    def _repr_html_(self) -> str:
        parts = [f'<span style="background:{TRAINED};color:#0b3d17">{html.escape(t)}</span>' if on
                 else f'<span style="color:#767676">{html.escape(t)}</span>' for t, on in self.spans]
        return ('<pre style="white-space:pre-wrap;line-height:1.5">' + "".join(parts) + "</pre>"
                f"<p><small>{self.trained} of {self.total} tokens are trained (green)</small></p>")


def _spans(ids: list[int], targets: list[bool], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """(text, trained) runs; together they are the decoded row. A character of several tokens shows where it ends."""
    start = done = 0  # first token of the run; characters shown so far
    for end in range(1, len(ids) + 1):
        if end == len(ids) or targets[end] != targets[start]:
            # Decoding with what precedes keeps the leading space that many tokenizers drop at a start.
            text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            text = text if end == len(ids) else text.rstrip("\ufffd")
            yield text[done:], targets[start]
            start, done = end, len(text)
