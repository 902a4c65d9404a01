"""The mask made visible: what of a row is trained, in colour, in a notebook and in a terminal; what it is about too."""

from __future__ import annotations

import base64
import html
import io
import re
import wave
from collections.abc import Iterator, Mapping
from typing import Any

from lorakit.data.media import RATE

TRAINED = "#c8f0cf"  # green behind trained tokens; grey text elsewhere
# A terminal obeys control characters: data shows them as pictures (U+2400 on), or not at all (C1).
SHOWN = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {
    c: "\ufffd" for c in range(0x7F, 0xA0)
}


class Preview:
    """One row's tokens, its media and its class. Shown as HTML by a notebook, with ANSI colours by `print`."""

    def __init__(
        self,
        ids: list[int],
        targets: list[bool],
        tokenizer: Any,
        row: Mapping[str, Any] | None = None,
    ):
        row = row or {"targets": targets}
        self.spans = list(_spans(list(map(int, ids)), list(map(bool, targets)), tokenizer))
        self.media: list[bytes] = row.get("media") or []
        self.trained, self.total = sum(map(bool, targets)), len(ids)
        self.count = f"{self.trained} of {self.total} tokens"
        if "targets" not in row:
            self.spans, self.count = [*self.spans, (f" → {row['reference']}", True)], "the class"

    def __str__(self) -> str:
        spans = [(t.translate(SHOWN), on) for t, on in self.spans]
        text = "".join(f"\x1b[30;42m{t}\x1b[0m" if on else f"\x1b[2m{t}\x1b[0m" for t, on in spans)
        return f"{text}\n[{self.count} trained]"

    def __repr__(self) -> str:
        """Without colours: what is trained stands in ⟦ ⟧."""
        text = "".join(f"⟦{t}⟧" if on else t for t, on in self.spans)
        return f"{text}\n[{self.count} trained]"

    def _repr_html_(self) -> str:
        verb, short = "is" if self.count == "the class" else "are", _short if self.media else str
        parts = [
            f'<span style="background:{TRAINED};color:#0b3d17">{html.escape(t)}</span>'
            if on
            else f'<span style="color:#767676">{html.escape(short(t))}</span>'
            for t, on in self.spans
        ]
        return (
            "".join(map(_element, self.media))
            + '<pre style="white-space:pre-wrap;line-height:1.5">'
            + "".join(parts)
            + f"</pre><p><small>{self.count} {verb} trained (green)</small></p>"
        )


class PairPreview:
    """A pair's two rows side by side: the chosen answer and the rejected one."""

    def __init__(self, chosen: Preview, rejected: Preview):
        self.sides = {"chosen": chosen, "rejected": rejected}

    def __str__(self) -> str:
        return "\n".join(f"{name}:\n{side}" for name, side in self.sides.items())

    def __repr__(self) -> str:
        return "\n".join(f"{name}:\n{side!r}" for name, side in self.sides.items())

    def _repr_html_(self) -> str:
        cells = (
            f'<td style="vertical-align:top;text-align:left;width:50%"><b>{name}</b>{side._repr_html_()}</td>'
            for name, side in self.sides.items()
        )
        return f"<table><tr>{''.join(cells)}</tr></table>"


def _short(words: str) -> str:
    """A token that stands for a part of a picture comes hundreds of times: `<image> × 256`."""
    return re.sub(r"(<[^<>\s]+>)\1{3,}", lambda m: f"{m[1]} × {len(m[0]) // len(m[1])} ", words)


def _element(raw: bytes) -> str:
    """HTML for a picture, or for a sound, as a row keeps them."""
    if raw.startswith(b"\x89PNG"):
        return f'<img style="height:12em" alt="" src="data:image/png;base64,{base64.b64encode(raw).decode()}">'
    with wave.open(out := io.BytesIO(), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
        file.writeframes(raw)
    return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(out.getvalue()).decode()}"></audio>'


def _spans(ids: list[int], targets: list[bool], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """(text, trained) runs; together they are the decoded row. A character of several tokens shows where it ends."""
    start = done = 0  # first token of the run; characters shown so far
    for end in range(1, len(ids) + 1):
        if end == len(ids) or targets[end] != targets[start]:
            # Decoding with what precedes keeps the leading space that many tokenizers drop at a start.
            text = tokenizer.decode(
                ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            text = text if end == len(ids) else text.rstrip("\ufffd")
            yield text[done:], targets[start]
            start, done = end, len(text)
