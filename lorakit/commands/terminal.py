"""What a terminal can show: colours, where it has them, and one line of progress that replaces itself."""

from __future__ import annotations

import os
from typing import TextIO

CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33, "quiet": 2}


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
