"""Text of others (names, labels, answers) made safe to show: one line, printable, of bounded length."""

from __future__ import annotations

import re

# Control characters, lone surrogates, and the marks that reorder the text around them (Unicode TR36 §3.2).
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


def printable(text: object) -> str:
    """The text with what cannot be shown replaced by `�`; line breaks and tabs stay."""
    return UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n"))


def label(text: object, length: int = 40) -> str:
    """The text on one line, cut to `length` characters; an empty one reads `(empty)`."""
    line = " ".join(printable(text).split())
    return (line if len(line) <= length else line[: length - 1] + "…") or "(empty)"


def markdown(text: object) -> str:
    """The text on one line, so that it breaks no table of Markdown and holds no tag."""
    line = " ".join(printable(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
