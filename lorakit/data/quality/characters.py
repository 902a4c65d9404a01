"""Characters that tell of a wrong turn: replacement marks, text decoded twice, control and invisible characters."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from lorakit.data import duplicates
from lorakit.data.example import Example
from lorakit.data.quality import SHOWN, YELLOW, Finding, bars, some

TITLE = "odd characters"
SAMPLED = False
SIGNS = {
    "replacement marks": re.compile("\ufffd"),
    "letters decoded twice": re.compile(r"Ã[\x80-\xbf©¨¤¶¼±³¡º]|â€[\x80-\xbf™œ\x9d“”˜]"),
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    "unusual line ends": re.compile("[\x85\u2028\u2029]"),
    "invisible characters": re.compile(
        "[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
    ),
    "HTML": re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d+);|</(?:p|div|span|a|li|td|b|i)>"),
}
CURES = {
    "replacement marks": "where � stands letters were lost; write the file again from its source, as UTF-8",
    "letters decoded twice": "Ã© stands for é, â€™ for ’; read the source as UTF-8 when you write the file",
    "control characters": "NUL and others that nobody types; remove them",
    "unusual line ends": "U+0085, U+2028 or U+2029; put a plain line end or a blank there",
    "invisible characters": "zero width or direction marks; remove them unless the script needs them",
    "HTML": "entities or tags, which the model will write as well; turn them into plain text",
}
PLAIN = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f&<]*", re.ASCII)


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def see(self, example: Example, set: str) -> None:
        words = duplicates.text(example)
        if words.isascii() and PLAIN.fullmatch(words):
            return
        for sign, pattern in SIGNS.items():
            if pattern.search(words):
                self.counts[sign] += 1
                places = self.places.setdefault(sign, [])
                if len(places) < SHOWN:
                    places.append(example.where)

    def findings(self) -> list[Finding]:
        return [
            Finding("warning", f"{sign} in {some(n)}: {CURES[sign]}", self.places[sign], n)
            for sign, n in self.counts.items()
        ]

    def facts(self) -> dict[str, Any]:
        return dict(self.counts)

    def draw(self, axes: Any) -> int:
        return bars(axes, self.counts, TITLE, YELLOW) if self.counts else 0
