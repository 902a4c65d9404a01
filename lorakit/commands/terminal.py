"""What a terminal can show: colours, where it has them, and one line of progress that replaces itself."""

from __future__ import annotations

import os
import re
from typing import TextIO

CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33, "quiet": 2}


# What moves a terminal's cursor, sets its title or writes its clipboard; colours and progress lines may pass.
CONTROL = re.compile(r"(\x1b\[[0-9;]*[mKA]|[\t\n\r])|[\x00-\x1f\x7f-\x9f]")


def shielded(stream: TextIO) -> None:
    """Names, rows and answers that a terminal is shown cannot command it: control characters become `�`."""
    if stream.isatty():
        write = stream.write
        stream.write = lambda text: write(CONTROL.sub(_kept, text))  # type: ignore[method-assign]


def _kept(found: re.Match) -> str:
    return found[1] or "\ufffd"


def colours(stream: TextIO) -> bool:
    """Whether to colour: a terminal, unless `NO_COLOR` (no-color.org) is set; `FORCE_COLOR` asks for them anyway."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (
        stream.isatty() and os.environ.get("TERM") != "dumb"
    )


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """The text in this colour, where the stream shows colours."""
    return f"\033[{CODES[colour]}m{text}\033[0m" if colours(stream) else text
